"""Finished runs side by side: tables, a figure, and the numbers behind them."""

import csv
import html
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_fed.core.errors import ConfigError
from lit_fed.suite.comparable import check_comparable
from lit_fed.suite.record import Record, read_record
from lit_fed.suite.render import as_html, as_markdown, as_rich, notes
from lit_fed.suite.table import choose_metric, tabulate

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console, ConsoleOptions, RenderableType

    from lit_fed.engine.result import Result

__all__ = ["Comparison", "compare"]


class Comparison:
    """Experiments side by side, a table for each setting; shows itself in a terminal and in a notebook.

    Args:
        records: At least one run.
        metric: By default the one that runs show: accuracy, or the first that the module reports. ``"personal/X"`` is
            the mean over clients, each with what it would be served.
        baseline: The experiment that the others are tested against.
        missing: Names of runs that ought to be here and are not.
    """

    def __init__(
        self,
        records: Sequence[Record],
        metric: str | None = None,
        baseline: str | None = None,
        missing: Sequence[str] = (),
    ) -> None:
        self.records, self.baseline, self.missing = tuple(records), baseline, tuple(missing)
        self.metric = choose_metric(self.records, metric)
        self.tables = tabulate(self.records, self.metric, baseline)

    @property
    def notes(self) -> list[str]:
        """What a reader must know to read the tables."""
        gone = [f"Not finished, and so not here: {', '.join(self.missing)}."] if self.missing else []
        return gone + notes(self.tables)

    def rows(self) -> list[dict[str, Any]]:
        """A row a run, with every metric: what ``pandas.DataFrame`` takes."""
        return [
            {
                "setting": record.setting,
                "experiment": record.experiment,
                "seed": record.seed,
                "algorithm": record.summary["algorithm"],
                "rounds": record.summary["rounds"],
                **record.summary["metrics"],
                **record.summary["traffic"],
                "train_s": record.summary["seconds"]["train"],
                "state_digest": record.summary["state_digest"],
                "path": str(record.path),
            }
            for record in self.records
        ]

    def markdown(self) -> str:
        """The tables and what a reader must know, ready for a paper."""
        return "\n".join([as_markdown(self.tables), "", *(f"- {note}" for note in self.notes), ""])

    def csv(self) -> str:
        """The `rows`."""
        rows = self.rows()
        buffer = io.StringIO()
        columns = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return buffer.getvalue()

    def plot(self, path: str | Path | None = None) -> "Figure":
        """Every seed, mean and spread of each experiment; also writes it to `path`, if given."""
        from lit_fed.suite.figure import draw

        figure = draw(self.tables)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def save(self, folder: str | Path) -> None:
        """Write ``table.md``, ``table.csv`` and ``figure.png``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "table.md").write_text(self.markdown(), "utf-8")
        (folder / "table.csv").write_text(self.csv(), "utf-8")
        self.plot(folder / "figure.png")

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        from rich.text import Text

        unlimited = options.update(width=10_000)
        for table in self.tables:
            yield from as_rich(table, lambda t: console.measure(t, options=unlimited).maximum <= options.max_width)
        for note in self.notes:
            yield Text(note, "dim")

    def _repr_html_(self) -> str:
        from lit_fed.pictures.canvas import img, png

        said = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return f"{img(png(self.plot(), dpi=100), 'comparison')}{as_html(self.tables)}<ul>{said}</ul>"


def compare(
    runs: "Iterable[str | Path | Result]",
    *,
    names: Sequence[str] | None = None,
    metric: str | None = None,
    baseline: str | None = None,
) -> Comparison:
    """Put finished runs side by side; runs of one name are seeds of one experiment.

    Args:
        runs: Run folders, or what ``Federation.fit`` returned.
        names: A name for each run; by default its algorithm's.
        metric: See `Comparison`.
        baseline: The name that the others are tested against; none without.

    Raises:
        ConfigError: If a run is not finished, runs have different data, those of one name different settings, or the
            metric or baseline is not there.

    Example::

        compare(["runs/version_0", "runs/version_1"], baseline="FedAvg").plot("figure.png")
    """
    paths = [Path(run) if isinstance(run, str | Path) else run.path for run in runs]
    if not paths:
        raise ConfigError("Expected `runs` to be run folders, but got none.")
    if names is not None and len(names) != len(paths):
        raise ConfigError(f"Expected `names` to be one for each of the {len(paths)} runs, but got {len(names)}.")
    called: Sequence[str | None] = names or [None] * len(paths)
    records = [read_record(path, name) for path, name in zip(paths, called, strict=True)]
    check_comparable(records)
    known = dict.fromkeys(record.experiment for record in records)
    if baseline is not None and baseline not in known:
        raise ConfigError(f"Expected `baseline` to be one of {', '.join(known)}, but got {baseline!r}.")
    return Comparison(records, metric, baseline)
