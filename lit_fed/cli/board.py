"""How far a suite is: a line for every run that ended, and on a terminal a table of those that run."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_fed.cli.suite_runs import Run
from lit_fed.engine.run_folder import RunFolder
from lit_fed.suite.record import Record, scores_of
from lit_fed.suite.table import choose_metric

if TYPE_CHECKING:
    from rich.table import Table

    from lit_fed.suite.processes import Ended, Job

_REFRESH_S = 1.0


class Board:
    """Prints; a context manager while runs run.

    Args:
        total: Runs of the suite.
        metric: To show; the runs' primary one by default.
        todo: The runs that will run.
    """

    def __init__(self, total: int, metric: str | None, todo: Sequence[Run]) -> None:
        from rich.console import Console
        from rich.live import Live

        self._total, self._metric, self._todo = total, metric, {run.name: run for run in todo}
        self._console = Console(highlight=False, soft_wrap=True)
        self._live = (
            Live(console=self._console, auto_refresh=False, transient=True) if self._console.is_terminal else None
        )
        self._done, self._shown = 0, 0.0

    def __enter__(self) -> "Board":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def start(self, others: Sequence[tuple[str, Record | None]], at_once: int, threads: int) -> None:
        """Say what will be done, and what is there already."""
        for name, record in others:
            if record is not None:
                self._line(f"{name}  {self._score(record)}  finished before")
        if todo := len(self._todo):
            each = "one thread" if threads == 1 else f"{threads} threads"
            at_once = min(at_once, todo)
            how = f"{at_once} at a time, {each} each" if at_once > 1 else f"one after another, {each} each"
            self._console.print(f"{todo} of {self._total} runs to do: {how} (--processes, --threads)")

    def ended(self, ended: "Ended", record: Record | None) -> None:
        """A line for it."""
        what = self._score(record) if record is not None else f"FAILED, see {ended.job.log}"
        self._line(f"{ended.job.name}  {what}  {ended.seconds:.1f} s")

    def show(self, running: "Sequence[tuple[Job, float]]") -> None:
        """Draw the table of what runs, on a terminal, now and then."""
        if self._live is not None and time.monotonic() - self._shown >= _REFRESH_S:
            self._shown = time.monotonic()
            self._live.update(self._table(running), refresh=True)

    def _table(self, running: "Sequence[tuple[Job, float]]") -> "Table":
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for job, seconds in running:
            run = self._todo[job.name]
            rounds = len(RunFolder(run.found).rounds()) if run.found is not None else 0
            how_far = f"{rounds} of {run.config['federation']['rounds']} rounds" if rounds else "starting"
            table.add_row(job.name, how_far, f"{seconds:.0f} s", style="dim")
        return table

    def _line(self, text: str) -> None:
        self._done += 1
        self._console.print(f"[{self._done}/{self._total}] {text}", markup=False)

    def _score(self, record: Record) -> str:
        metric = choose_metric([record], self._metric)
        return f"{metric} {scores_of(record.summary, metric).mean:.3f}"
