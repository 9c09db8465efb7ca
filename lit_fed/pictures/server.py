"""What the server says of its merges: every number that an algorithm puts into `Server.metrics`, over rounds."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_fed.pictures.canvas import COLOURS, new_figure, open_frame, short, whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_server", "server_numbers"]

_PREFIX = "server/"
_MOST, _COLUMNS = 60, 3
_ROUNDING, _AROUND = 1e-6, 0.1  # of a value: less than the first is no change, and the second is shown about it


def server_numbers(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The columns ``server/<name>`` of ``metrics.csv``.

    Returns:
        Name -> rounds and values, ``(2, rounds that have it)``; names in the order of the columns.
    """
    names = dict.fromkeys(name for row in rows for name in row if name.startswith(_PREFIX))
    return {
        name.removeprefix(_PREFIX): np.array([(row["round"], row[name]) for row in rows if name in row], dtype=float).T
        for name in names
    }


def draw_server(numbers: Mapping[str, np.ndarray]) -> "Figure":
    """A small panel for every number, all over the same rounds; beyond 60 the first 60."""
    shown = list(numbers.items())[:_MOST]
    columns = min(_COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    figure = new_figure(3.2 * columns + 0.4, 1.9 * lines + 0.6)
    grid = figure.subplots(lines, columns, sharex=True, squeeze=False).ravel()
    for axes, (name, (rounds, values)) in zip(grid, shown, strict=False):
        open_frame(axes)
        axes.plot(rounds, values, marker="." if len(rounds) <= 40 else "", color=COLOURS[0], linewidth=1.2)
        axes.set_title(short(name, 36), fontsize="medium")
        whole_numbers(axes.xaxis)
        axes.margins(y=0.1)
        axes.ticklabel_format(axis="y", useOffset=False)  # a number to be read, not to be added to another one
        if np.ptp(values) <= _ROUNDING * np.abs(values).max():
            axes.set_ylim(values[0] - _AROUND * abs(values[0] or 1), values[0] + _AROUND * abs(values[0] or 1))
        if all(float(value).is_integer() for value in values):
            whole_numbers(axes.yaxis, 6)  # a stage, a number of blocks: there is nothing between two
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    for axes in grid[max(0, len(shown) - columns) : len(shown)]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("round")
    if len(shown) < len(numbers):
        figure.suptitle(f"the first {len(shown)} of {len(numbers)} numbers of the server", fontsize="medium")
    return figure
