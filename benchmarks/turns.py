"""Contenders take turns: a round each while the others wait, so that all see the same machine in the same minutes.

Everybody is started once and stays. Before a round, each process of a contender asks for a shared lock on that round's
file, which whoever runs the benchmark holds until it is the contender's turn. Waiting for a lock costs no time of a
processor. Linux only.
"""

import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.machine import MARK, peak_bytes

PATIENCE_S = 900.0
"""How long a round, or a start, may take."""


class Rounds:
    """A contender's rounds, each when it is its turn; at once where nobody holds locks.

    Args:
        folder: The contender's.
        tells: Whether this process says how long rounds take: one of a contender does.
    """

    def __init__(self, folder: Path, tells: bool) -> None:
        self.folder, self.tells = folder, tells
        self.begun = 0
        self._began = 0.0

    def next(self) -> None:
        """Where a round has begun, it ends; returns when the next one may begin."""
        if self.begun:
            self.end()
        lock = self.folder / f"turn_{self.begun}"
        if lock.exists():
            with open(lock) as file:
                fcntl.flock(file, fcntl.LOCK_SH)
        self.begun += 1
        self._began = time.perf_counter()

    def end(self) -> None:
        """The round has ended."""
        ended = time.perf_counter()
        if self.tells:
            new = self.folder / "new"
            new.write_text(json.dumps({"seconds": ended - self._began, "ended": ended}))
            new.rename(self.folder / f"ended_{self.begun - 1}")


class Player:
    """A contender's processes, seen from outside.

    Args:
        name: For messages.
        command: What it runs.
        environment: Of its processes.
        rounds: How many it makes.
        folder: A new one, its own.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], rounds: int, folder: Path
    ) -> None:
        folder.mkdir()
        self.name, self.folder = name, folder
        self.seconds: list[float] = []
        self.peak_bytes = 0
        self._locks = [open(folder / f"turn_{round}", "w") for round in range(rounds)]  # noqa: SIM115
        for lock in self._locks:
            fcntl.flock(lock, fcntl.LOCK_EX)
        self.started = time.perf_counter()
        with open(folder / "log", "w") as log:
            self.process = subprocess.Popen(  # noqa: S603
                command, env={**environment, MARK: str(folder)}, stdout=log, stderr=log, start_new_session=True
            )

    def play(self) -> float:
        """Its turn: one round; returns the clock at its end."""
        round = len(self.seconds)
        self._locks[round].close()
        ended = self.folder / f"ended_{round}"
        patient_until = time.perf_counter() + PATIENCE_S
        while not ended.exists():
            if self.process.poll() is not None or time.perf_counter() > patient_until:
                raise RuntimeError(f"{self.name} did not end round {round}:\n{self._log()}")
            time.sleep(0.01)
        found: dict[str, Any] = json.loads(ended.read_text())
        self.seconds.append(found["seconds"])
        self.peak_bytes = max(self.peak_bytes, peak_bytes(str(self.folder)))
        return float(found["ended"])

    def finish(self) -> None:
        """After its last round: wait until it has written what it has to say, and is gone."""
        if self.process.wait(PATIENCE_S):
            raise RuntimeError(f"{self.name} ended with status {self.process.returncode}:\n{self._log()}")

    def close(self) -> None:
        """Leave no process and no lock behind."""
        for lock in self._locks:
            lock.close()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(PATIENCE_S)

    def _log(self) -> str:
        return (self.folder / "log").read_text()[-3000:]
