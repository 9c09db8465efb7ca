"""``lit-fed suite``: skip what is finished, run the rest side by side, compare."""

import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lit_fed.cli.board import Board
from lit_fed.cli.places import environment_of, gpus_of, processors
from lit_fed.cli.suite_file import Suite
from lit_fed.cli.suite_runs import Run, refuse_changes, resolve
from lit_fed.suite import Comparison
from lit_fed.suite.lock import locked
from lit_fed.suite.processes import Ended, Processes

__all__ = ["Outcome", "run_suite"]

_LAST_LINES = 12  # of the log of a run that failed


@dataclass(frozen=True)
class Outcome:
    """What a suite ends with."""

    comparison: Comparison | None
    """`None` if no run is finished."""
    folder: Path
    """Where table and figure are."""
    failures: str
    """Which runs failed, and why; empty if none did."""


def run_suite(suite: Suite, chosen: Collection[str], processes: int | None, threads: int) -> Outcome:
    """Run what is not finished, then compare everything that is.

    Args:
        suite: As its file says.
        chosen: Experiments to run; the table has what is finished of the others, too.
        processes: Runs at once; by default as many as processors, or GPUs, allow.
        threads: Of each run.

    Raises:
        ConfigError: Before the first run, with every problem found.
    """
    print(f"Checking the settings of {len(suite.variants) * len(suite.seeds)} runs.", flush=True)
    runs = resolve(suite)
    with locked(suite.run_dir) as lock:
        refuse_changes(runs)
        todo = [run for run in runs if run.record() is None and run.variant.experiment in chosen]
        gpus = gpus_of(runs)
        at_once = processes or max(1, len(gpus) or processors() // threads)
        board = Board(len(runs), suite.metric, todo)
        board.start([(run.name, run.record()) for run in runs if run not in todo], at_once, threads)
        failed = _run(todo, at_once, threads, gpus, lock, board)
        return Outcome(_compare(suite, runs), suite.run_dir, _report(failed))


def _run(runs: Sequence[Run], at_once: int, threads: int, gpus: Sequence[str], lock: int, board: Board) -> list[Ended]:
    """Run them; returns those that failed."""
    by_name = {run.name: run for run in runs}
    failed = []
    environment = partial(environment_of, threads=threads, gpus=gpus)
    with board, Processes([run.job() for run in runs], at_once, environment, lock) as processes:
        while processes.busy:
            for ended in processes.step():
                record = by_name[ended.job.name].record() if ended.code == 0 else None
                if record is None:
                    failed.append(ended)
                board.ended(ended, record)
            board.show(processes.running)
    return failed


def _compare(suite: Suite, runs: Sequence[Run]) -> Comparison | None:
    """Tables and figure of what is finished, in the order of the file; also written."""
    order = {variant: place for place, variant in enumerate((v.setting, v.experiment) for v in suite.variants)}
    found = {run.name: run.record() for run in runs}
    records = sorted(
        (record for record in found.values() if record is not None),
        key=lambda record: (order[record.setting, record.experiment], record.seed),
    )
    if not records:
        return None
    missing = [name for name, record in found.items() if record is None]
    comparison = Comparison(records, suite.metric, suite.baseline, missing)
    comparison.save(suite.run_dir)
    return comparison


def _report(failed: Sequence[Ended]) -> str:
    """Which runs failed, and the last lines of their logs; nothing if none did."""
    if not failed:
        return ""
    parts = [f"{len(failed)} of the suite's runs failed. The same command tries them again."]
    for ended in failed:
        how = f"exit code {ended.code}" if ended.code >= 0 else f"ended by {signal.Signals(-ended.code).name}"
        lines = [line for line in ended.job.log.read_text("utf-8", "replace").splitlines() if line.strip()]
        tail = "".join(f"\n  {line}" for line in lines[-_LAST_LINES:])
        parts.append(f"{ended.job.name} ({how}), at the end of {ended.job.log}:{tail}")
    return "\n".join(parts)
