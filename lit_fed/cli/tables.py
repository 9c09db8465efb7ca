"""What commands show in a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

MOST_CLIENTS, MOST_LABELS = 40, 12
PARTS = ("train", "val", "test")


def holdings(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Who holds what, from ``FederatedDataModule.table()``.

    A few labels have a column each, with numbers of training examples; of many, it is how many of them a client has.
    """
    labels = sorted({name for row in rows for name in row["labels"] or {}}, key=_natural)
    few = len(labels) <= MOST_LABELS
    table = Table(title=f"{len(rows)} clients", box=SIMPLE)
    if few and labels:
        table.caption = "training examples by label"
    for name in ("client", "domain", *PARTS, *(labels if few else ["labels"])):
        table.add_column(name, justify="left" if name in ("client", "domain") else "right")
    for row in rows[:MOST_CLIENTS]:
        held = row["labels"] or {}
        counts = [str(held.get(name, 0)) for name in labels] if few else [str(sum(n > 0 for n in held.values()))]
        table.add_row(row["client"], row["domain"] or "", *(str(row[part]) for part in PARTS), *counts)
    if len(rows) > MOST_CLIENTS:
        table.add_row(f"... {len(rows) - MOST_CLIENTS} more")
    table.add_section()
    table.add_row("all", "", *(str(sum(row[part] for row in rows)) for part in PARTS))
    return table


def scores(metrics: Mapping[str, float]) -> Table:
    """Metrics by name."""
    table = Table("metric", "value", box=SIMPLE)
    table.columns[1].justify = "right"
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    return table


def _natural(name: str) -> tuple[int, str]:
    """Numbers by value, then words."""
    return (int(name), "") if name.isdigit() else (2**63, name)
