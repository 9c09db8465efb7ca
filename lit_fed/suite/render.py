"""Tables as text: Markdown for a paper, rich for a terminal, HTML for a notebook."""

import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lit_fed.core.units import readable_bytes
from lit_fed.suite.seeds import PairedTest, Spread, least_difference
from lit_fed.suite.table import Row, SettingTable

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["as_html", "as_markdown", "as_rich", "notes"]

_FEW_SEEDS = 10  # below, a table says how little its tests can find


@dataclass(frozen=True)
class Column:
    """What stands below one heading."""

    name: str
    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()
    """The rows that are set in bold."""
    domain: bool = False


def as_markdown(tables: Iterable[SettingTable]) -> str:
    """Ready for a paper; the best mean of each score in bold."""
    parts = []
    for table in tables:
        columns = [Column("", _names(table)), *_columns(table, spread=True)]
        lines = [[_escaped(column.name) for column in columns], ["---", *["---:"] * (len(columns) - 1)]]
        for i in range(len(table.rows)):
            cells = [_escaped(column.cells[i]) for column in columns]
            lines.append([f"**{c}**" if i in k.best else c for c, k in zip(cells, columns, strict=True)])
        title = f"### {table.setting}\n\n" if table.setting else ""
        parts.append(title + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts)


def as_rich(table: SettingTable, fits: Callable[["Table"], bool]) -> list["Table"]:
    """For a terminal: one table, or if it does not fit, two, the second with the domains."""
    columns = _columns(table, spread=False)
    whole = _rich(table, columns, table.setting)
    if not table.domains or fits(whole):
        return [whole]
    overall = _rich(table, [column for column in columns if not column.domain], table.setting)
    return [overall, _rich(table, [column for column in columns if column.domain], "by domain")]


def _rich(table: SettingTable, columns: Sequence[Column], title: str) -> "Table":
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=Text(title, "bold") if title else None, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    shown.add_column("")
    for column in columns:
        shown.add_column(Text(column.name), justify="right", no_wrap=True)
    for i, name in enumerate(_names(table)):
        shown.add_row(Text(name), *(Text(k.cells[i], "bold" if i in k.best else "") for k in columns))
    return shown


def as_html(tables: Iterable[SettingTable]) -> str:
    """For a notebook."""
    parts = []
    for table in tables:
        columns = _columns(table, spread=True)
        head = "".join(f"<th>{html.escape(name)}</th>" for name in ["", *(column.name for column in columns)])
        lines = []
        for i, name in enumerate(_names(table)):
            cells = [f"<b>{html.escape(k.cells[i])}</b>" if i in k.best else html.escape(k.cells[i]) for k in columns]
            row = "".join(f"<td>{cell}</td>" for cell in cells)
            lines.append(f'<tr><th style="text-align: left">{html.escape(name)}</th>{row}</tr>')
        caption = f"<h4>{html.escape(table.setting)}</h4>" if table.setting else ""
        parts.append(f"{caption}<table><tr>{head}</tr>{''.join(lines)}</table>")
    return "".join(parts)


def notes(tables: Sequence[SettingTable]) -> list[str]:
    """What a reader must know to read the tables, a sentence or two each."""
    first = tables[0]
    better = "higher" if first.higher_is_better else "lower"
    said = [f"{first.metric} on test data ({better} is better): mean ± standard deviation (n - 1) over seeds."]
    if any(table.domains for table in tables):
        said[0] += " “mean” is the unweighted mean over domains."
    if any(row.worst for table in tables for row in table.rows):
        mean = "personal" if any(row.personal for table in tables for row in table.rows) else "mean"
        said.append(f"“{mean}” is the mean over clients, each with what it would be served; “worst” the worst client.")
    said.append(
        "“up” and “down” are the bytes of all clients together in a round; “train” the seconds of training of a run,"
        " evaluation apart (runs side by side slow one another)."
    )
    said += _seeds(tables)
    tested = [row.test for table in tables for row in table.rows if row.test is not None]
    if tested:
        name = next(table.baseline for table in tables if table.baseline)
        said.append(
            f"“vs {name}” is the difference of the means over the seeds that both have, p that of a two-sided paired"
            " t-test over them; p values are not corrected for the number of comparisons."
        )
        said += _power(tested)
    return said


def _seeds(tables: Iterable[SettingTable]) -> list[str]:
    """Which seeds, said once for all settings that have the same."""
    found: dict[str, list[str]] = {}
    for table in tables:
        partial = [f"{r.experiment} {_list(r.means)} only" for r in table.rows if tuple(r.means) != table.seeds]
        found.setdefault("; ".join([_list(table.seeds), *partial]), []).append(table.setting)
    if len(found) == 1:
        return [f"Seeds: {seeds}." for seeds in found]
    return [f"Seeds of {', '.join(settings)}: {seeds}." for seeds, settings in found.items()]


def _power(tests: Sequence[PairedTest]) -> list[str]:
    fewest = min((test.num_seeds for test in tests if test.num_seeds > 1), default=0)
    if not 2 <= fewest < _FEW_SEEDS:
        return []
    return [
        f"With {fewest} seeds such a test has little power: p < 0.05 takes a mean difference of"
        f" {least_difference(fewest):.1f} standard deviations of the differences. A large p is no evidence of equality."
    ]


def _columns(table: SettingTable, spread: bool) -> list[Column]:
    """Everything but the names; with or without the spread of single domains and clients."""
    rows = table.rows
    found = [_scores(table, "mean", [row.mean for row in rows], spread=True)]
    for domain in table.domains:
        found.append(_scores(table, domain, [row.domains.get(domain) for row in rows], spread, domain=True))
    for name in ("personal", "worst"):
        values: list[Spread | None] = [getattr(row, name) for row in rows]
        if any(value is not None for value in values):
            found.append(_scores(table, name, values, spread))
    found += [
        Column("up", tuple(readable_bytes(row.up_bytes) for row in rows)),
        Column("down", tuple(readable_bytes(row.down_bytes) for row in rows)),
        Column("train", tuple(f"{row.train_s:.1f} s" for row in rows)),
    ]
    if table.baseline is not None:
        found.append(Column(f"vs {table.baseline}", tuple(_difference(table, row) for row in rows)))
        found.append(Column("p", tuple(_p(row.test) for row in rows)))
    return found


def _scores(
    table: SettingTable, name: str, values: Sequence[Spread | None], spread: bool, domain: bool = False
) -> Column:
    means = {i: value.mean for i, value in enumerate(values) if value is not None}
    best = (max if table.higher_is_better else min)(means.values(), default=0.0)
    bold = {i for i, mean in means.items() if _number(mean) == _number(best)}  # what reads the same is equally good
    shown = frozenset(bold) if len(bold) < len(means) else frozenset()
    return Column(name, tuple(_score(value, spread) for value in values), shown, domain)


def _score(value: Spread | None, spread: bool) -> str:
    if value is None:
        return ""
    return _number(value.mean) if value.std is None or not spread else f"{_number(value.mean)} ± {_number(value.std)}"


def _number(value: float) -> str:
    return f"{value:.3f}"


def _difference(table: SettingTable, row: Row) -> str:
    if row.test is None:
        return "baseline" if row.experiment == table.baseline else ""
    return f"{row.test.difference:+.3f}"


def _p(test: PairedTest | None) -> str:
    if test is None:
        return ""
    return test.why_not if test.p is None else f"{test.p:.2g}"


def _names(table: SettingTable) -> tuple[str, ...]:
    return tuple(row.experiment for row in table.rows)


def _list(seeds: Iterable[int]) -> str:
    return ", ".join(str(seed) for seed in seeds)


def _escaped(text: str) -> str:
    return text.replace("|", r"\|")
