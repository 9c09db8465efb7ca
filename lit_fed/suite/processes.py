"""Commands side by side, each in a process of its own with a log of its own; none outlives who started it."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Ended", "Job", "Processes"]

_GRACE_S = 10.0  # what a process has to end by itself when it is asked to
_STEP_S = 0.05
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Job:
    """A command to run."""

    name: str
    command: tuple[str, ...]
    log: Path
    """What it says is added here."""


@dataclass(frozen=True)
class Ended:
    """A job that ran."""

    job: Job
    code: int
    """The exit code; minus the signal's number if a signal ended it."""
    seconds: float


@dataclass(frozen=True)
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    started: float


class Processes:
    """Jobs, at most so many at a time, in their order; a context manager that stops what still runs when it is left.

    Args:
        jobs: What to run.
        at_once: Places to run in, numbered from 0.
        environment: The environment variables of a place.
        lock: An open file that every process keeps open for as long as it lives.
    """

    def __init__(
        self, jobs: Sequence[Job], at_once: int, environment: Callable[[int], Mapping[str, str]], lock: int
    ) -> None:
        self._waiting = list(jobs)
        self._free = list(range(at_once))
        self._environment, self._lock = environment, lock
        self._running: dict[int, _Running] = {}

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    @property
    def busy(self) -> bool:
        """Whether something runs or waits."""
        return bool(self._waiting or self._running)

    @property
    def running(self) -> list[tuple[Job, float]]:
        """What runs, and for how many seconds."""
        now = time.monotonic()
        return [(running.job, now - running.started) for _, running in sorted(self._running.items())]

    def step(self) -> list[Ended]:
        """Start what there is room for, wait a moment, and tell what has ended."""
        while self._waiting and self._free:
            place = self._free.pop(0)
            self._running[place] = self._start(self._waiting.pop(0), place)
        time.sleep(_STEP_S)
        ended = []
        for place, running in sorted(self._running.items()):
            code = running.process.poll()
            if code is not None:
                ended.append(Ended(running.job, code, time.monotonic() - running.started))
                del self._running[place]
                self._free.append(place)
        return ended

    def _start(self, job: Job, place: int) -> _Running:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with open(job.log, "ab") as log:
            process = subprocess.Popen(  # noqa: S603 (our own command)
                job.command,
                env=dict(self._environment(place)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(self._lock,),
                start_new_session=True,  # Ctrl-C is for us, and we pass it on once
                preexec_fn=_end_with_parent if _libc is not None else None,
            )
        return _Running(job, process, time.monotonic())

    def _stop(self) -> None:
        for number in (signal.SIGINT, signal.SIGKILL):
            left = [running.process for running in self._running.values() if running.process.poll() is None]
            for process in left:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)  # with what it has started itself
            deadline = time.monotonic() + _GRACE_S
            for process in left:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        self._running.clear()
        self._waiting.clear()


# Looked up here: between fork and exec as little as possible is done.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    """Ask the kernel to kill this process when its parent is gone, however it went."""
    assert _libc is not None
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
