"""One suite at a time in a folder."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_fed.core.errors import ConfigError

__all__ = ["locked"]

_PATIENCE_S = 3.0  # processes of a suite that was just killed need a moment to go


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the folder's lock; the file number is for processes to inherit, and the last one to close it frees it.

    Raises:
        ConfigError: If another suite, or a process that it left behind, holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while not _taken(file):
            if time.monotonic() > deadline:
                who = os.pread(file, 100, 0).decode(errors="replace").strip()
                raise ConfigError(
                    f"Expected `run_dir` to be free, but another suite (process {who}) is at work in {folder}. Wait for"
                    " it, end it, or choose another `--run_dir`."
                )
            time.sleep(0.05)
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        yield file
    finally:
        os.close(file)


def _taken(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
