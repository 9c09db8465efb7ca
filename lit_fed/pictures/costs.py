"""What the rounds cost: bytes of all clients together, and seconds."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_fed.pictures.canvas import COLOURS, byte_unit, new_figure, open_frame, whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_costs"]

_MARKED_UP_TO = 40  # rounds that have room for a point each


def draw_costs(rows: Sequence[Mapping[str, Any]]) -> "Figure | None":
    """Two panels over rounds: bytes up and down, and seconds.

    Args:
        rows: Of ``metrics.csv``.

    Returns:
        `None` if there was no round.
    """
    if not rows:
        return None
    rounds = np.array([row["round"] for row in rows])
    up, down, seconds = (
        np.array([row.get(name, np.nan) for row in rows], dtype=float) for name in ("up_bytes", "down_bytes", "seconds")
    )
    size, unit = byte_unit(float(np.nanmax([up, down], initial=0.0)))
    figure = new_figure(9, 3.2)
    traffic, time = figure.subplots(1, 2)
    look: dict[str, Any] = {"marker": "o" if len(rows) <= _MARKED_UP_TO else "", "markersize": 3.5, "linewidth": 1.5}
    # Up over down: often they are the same, and both should be seen.
    traffic.plot(rounds, down / size, color=COLOURS[1], label="down", **{**look, "linewidth": 4, "alpha": 0.6})
    traffic.plot(rounds, up / size, color=COLOURS[0], label="up", **look)
    traffic.set_ylabel(f"{unit} a round")
    handles, labels = traffic.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False, fontsize="small")
    time.plot(rounds, seconds, color=COLOURS[2], **look)
    time.set_ylabel("seconds a round")
    for axes, values in ((traffic, [up, down]), (time, [seconds])):
        open_frame(axes)
        axes.set_xlabel("round")
        axes.set_ylim(0, 1.15 * float(np.nanmax(values, initial=0.0)) / (size if axes is traffic else 1) or 1.0)
        whole_numbers(axes.xaxis)
    return figure
