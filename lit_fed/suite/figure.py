"""The picture of a comparison: every seed, mean and spread of each experiment, a panel for each setting."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_fed.pictures.canvas import COLOURS, name_rows, new_figure, open_frame, short
from lit_fed.suite.table import SettingTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw"]

_ACROSS = {1: 1, 2: 2, 3: 3, 4: 2}  # panels beside one another, by their number; three of more
_LIFT = 0.24  # of a row: seeds stand above their mean, so that neither hides the other
_COLOUR, _BASELINE = COLOURS[0], COLOURS[-1]


def draw(tables: Sequence[SettingTable]) -> "Figure":
    """Experiments from the top down as in the table, the score to the right."""
    names = list(dict.fromkeys(row.experiment for table in tables for row in table.rows))
    across = _ACROSS.get(len(tables), 3)
    down = -(-len(tables) // across)
    height = float(np.clip(1.3 + 0.36 * len(names), 2.2, 14))
    figure = new_figure(2.4 + (3.6 if across > 1 else 4.8) * across, height * down)
    grid = figure.subplots(down, across, sharey=True, squeeze=False)
    for axes in grid[:, 0]:
        name_rows(axes, names, height, "")
    panels = list(grid.flat)
    for axes, table in zip(panels, tables, strict=False):
        _panel(axes, table, names)
    for axes in panels[len(tables) :]:
        axes.remove()
    figure.supxlabel(_legend(tables), fontsize=8, color="0.35")
    return figure


def _panel(axes: Any, table: SettingTable, names: Sequence[str]) -> None:
    open_frame(axes)
    for row in table.rows:
        place = names.index(row.experiment)
        colour = _BASELINE if row.experiment == table.baseline else _COLOUR
        values = list(row.means.values())
        if len(values) > 1:
            look = {"facecolors": "none", "edgecolors": colour, "linewidths": 0.9}
            axes.scatter(values, [place - _LIFT] * len(values), s=16, **look)
        axes.errorbar(row.mean.mean, place, xerr=row.mean.std, fmt="o", markersize=6, color=colour, capsize=3)
        if row.experiment == table.baseline:
            axes.axvline(row.mean.mean, color=colour, linewidth=0.9, linestyle=":", zorder=1.5)
    axes.set_title(short(table.setting, 40), fontsize="medium", loc="left")
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel(short(table.metric, 40) + ("" if table.higher_is_better else ", lower is better"))


def _legend(tables: Sequence[SettingTable]) -> str:
    several = any(len(row.means) > 1 for table in tables for row in table.rows)
    spread = "circles: single seeds; point and bar: their mean ± standard deviation"
    baseline = next((table.baseline for table in tables if table.baseline), None)
    lines = [spread if several else "one seed"]
    return "\n".join([*lines, f"dotted: mean of the baseline, {short(baseline)}"] if baseline else lines)
