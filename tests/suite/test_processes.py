"""Commands side by side: limits, logs, and that none is left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lit_fed.core.errors import ConfigError
from lit_fed.suite import lock as lock_module
from lit_fed.suite import processes as processes_module
from lit_fed.suite.lock import locked
from lit_fed.suite.processes import Ended, Job, Processes
from tests.conftest import REPOSITORY

SLEEP = "print('here', flush=True); import time; time.sleep(60)"
DEAF = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); {SLEEP}"


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[int]:
    with locked(tmp_path / "suite") as file:
        yield file


def job(folder: Path, name: str, code: str) -> Job:
    return Job(name, (sys.executable, "-c", code), folder / name / "log.txt")


def inherited(place: int) -> dict[str, str]:
    return {**os.environ, "PLACE": str(place)}


def finish(processes: Processes) -> list[Ended]:
    ended = []
    deadline = time.monotonic() + 120
    while processes.busy:
        assert time.monotonic() < deadline
        ended += processes.step()
    return ended


def wait_for(path: Path, text: str) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_all_run_and_tell_how_they_ended(tmp_path: Path, lock: int) -> None:
    codes = {
        "good": "print('hello')",
        "bad": "import sys; print('no', file=sys.stderr); sys.exit(3)",
        "gone": "import os; os.kill(os.getpid(), 9)",
    }
    jobs = [job(tmp_path, name, code) for name, code in codes.items()]
    with Processes(jobs, 2, inherited, lock) as processes:
        ended = {found.job.name: found.code for found in finish(processes)}
    assert ended == {"good": 0, "bad": 3, "gone": -signal.SIGKILL}
    assert [found.log.read_text() for found in jobs] == ["hello\n", "no\n", ""]


def test_no_more_than_there_are_places_for_and_each_in_one_of_its_own(tmp_path: Path, lock: int) -> None:
    """Every job claims its place by making a folder, which fails if another one is there."""
    code = "import os, time; f = os.environ['PLACE']; os.mkdir(f); time.sleep(0.05); os.rmdir(f); print(f)"
    jobs = [job(tmp_path, str(number), f"import os; os.chdir({str(tmp_path)!r}); {code}") for number in range(5)]
    with Processes(jobs, 2, lambda place: {"PLACE": f"place{place}"}, lock) as processes:
        ended = []
        while processes.busy:
            ended += processes.step()
            assert len(processes.running) <= 2
    assert [found.code for found in ended] == [0] * 5
    assert {found.job.log.read_text().strip() for found in ended} == {"place0", "place1"}


def test_logs_are_added_to(tmp_path: Path, lock: int) -> None:
    for word in ("first", "second"):
        with Processes([job(tmp_path, "a", f"print({word!r})")], 1, inherited, lock) as processes:
            finish(processes)
    assert (tmp_path / "a" / "log.txt").read_text() == "first\nsecond\n"


@pytest.mark.parametrize("code", [SLEEP, DEAF])
def test_an_interruption_ends_what_runs_even_if_it_will_not_listen(
    code: str, tmp_path: Path, lock: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes_module, "_GRACE_S", 0.3 if code is DEAF else 30.0)
    jobs = [job(tmp_path, name, code) for name in ("a", "b", "never")]
    started: list[subprocess.Popen[bytes]] = []

    def interrupted() -> None:
        with Processes(jobs, 2, inherited, lock) as processes:
            processes.step()
            started.extend(running.process for running in processes._running.values())
            for name in ("a", "b"):
                wait_for(tmp_path / name / "log.txt", "here")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)
    assert not (tmp_path / "never").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_a_killed_parent_takes_its_processes_along_and_frees_the_folder(tmp_path: Path) -> None:
    parent = f"""
import os, sys
from pathlib import Path
from lit_fed.suite.lock import locked
from lit_fed.suite.processes import Job, Processes
folder = Path({str(tmp_path)!r})
job = Job("a", (sys.executable, "-c", {SLEEP!r}), folder / "log.txt")
with locked(folder / "suite") as lock, Processes([job], 1, lambda place: os.environ, lock) as processes:
    while True:
        processes.step()
"""
    process = subprocess.Popen([sys.executable, "-c", parent], env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    wait_for(tmp_path / "log.txt", "here")
    process.kill()
    process.wait()
    with locked(tmp_path / "suite"):  # waits a moment for the sleeper to go, and would not get in while it lives
        pass


def test_one_suite_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "_PATIENCE_S", 0.1)
    refused = pytest.raises(ConfigError, match=rf"another suite \(process {os.getpid()}\) is at work in")
    with locked(tmp_path), refused, locked(tmp_path):
        pass
    with locked(tmp_path) as file:
        left_behind = subprocess.Popen([sys.executable, "-c", SLEEP], pass_fds=(file,), stdout=subprocess.PIPE)
    with pytest.raises(ConfigError, match="Expected `run_dir` to be free"), locked(tmp_path):
        pass
    left_behind.kill()
    left_behind.communicate()
    with locked(tmp_path):
        pass
