"""What all pictures share: a figure of its own, names that fit, colours that can be told apart, PNG."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS", "MISSING", "ON_DARK", "ON_LIGHT", "block_axes", "byte_unit", "img", "mark_stages", "name_rows",
    "new_figure", "open_frame", "png", "short", "whole_numbers",
]  # fmt: skip

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Told apart by colour-blind eyes too: Okabe and Ito, "Color Universal Design" (2008), without black and yellow."""
MISSING = "#D55E00"
"""For what ought to be there and is not, beside shades of blue."""
ON_DARK, ON_LIGHT = "#fdfdfd", "#101010"
"""For text on colours: they do not follow the page, as plain black and white do; see `lit_fed.pictures.svg`."""


def new_figure(width: float, height: float) -> "Figure":
    """A figure that nobody else knows of, and that a notebook shows; sizes in inches."""
    from lit_fed.pictures.notebook import NotebookFigure  # not pyplot's: that keeps figures and picks a window system

    return NotebookFigure(figsize=(width, height), layout="constrained")


def png(figure: "Figure", dpi: int = 150) -> bytes:
    """The figure as a PNG file; equal figures give equal bytes."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=dpi)
    return image.getvalue()


def img(picture: bytes, alt: str) -> str:
    """A PNG as an HTML element that needs no file."""
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'


def short(name: str, most: int = 24) -> str:
    """A name that fits; its dollar signs stay what they are (matplotlib would set a formula between two)."""
    return (name if len(name) <= most else name[: most - 1] + "…").replace("$", r"\$")


def name_rows(axes: Any, names: Sequence[str], height: float, what: str) -> None:
    """Name the rows 0, 1, ... from the top down, at most six an inch.

    Args:
        axes: Whose vertical axis it is.
        names: Of all rows.
        height: Of the figure, in inches.
        what: A row is.
    """
    step = max(1, round(len(names) / (height * 6)))
    axes.set_yticks(range(0, len(names), step), [short(name) for name in names[::step]], fontsize=8)
    axes.set_ylabel(what if step == 1 else f"{what} (one in {step} is named)")
    axes.set_ylim(len(names) - 0.5, -0.5)


def whole_numbers(axis: Any, most: int = 8) -> None:
    """Ticks at whole numbers only, and so few that they do not meet."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(most, integer=True, min_n_ticks=1))


def block_axes(figure: "Figure", axes: Any, cells: Any, num_blocks: int, counted: str, rounds: int = 1) -> None:
    """Rounds to the right, blocks upwards, and a scale of whole numbers beside all that is in the figure.

    Args:
        figure: The figure.
        axes: Of the heat map.
        cells: What `matplotlib.axes.Axes.pcolormesh` returned.
        num_blocks: Rows of the heat map.
        counted: What the numbers are, at most two lines.
        rounds: How many a column is the mean of.
    """
    axes.set_ylim(-0.5, num_blocks - 0.5)
    axes.set_xlabel("round")
    axes.set_ylabel("block")
    whole_numbers(axes.xaxis)
    axes.set_yticks(range(0, num_blocks, -(-num_blocks // 32)))
    label = counted + (f"\n(mean of {rounds} rounds)" if rounds > 1 else "")
    bar = figure.colorbar(cells, ax=figure.axes, label=label, pad=0.02, aspect=30)
    whole_numbers(bar.ax.yaxis)
    bar.ax.minorticks_off()


def byte_unit(most: float) -> tuple[float, str]:
    """Bytes to a unit in which the largest number has one to three digits."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if most >= size:
            return size, unit
    return 1.0, "bytes"


def mark_stages(axes: Any, stages: Mapping[int, int]) -> None:
    """A line before the first round of every stage but the first, and the stage's name above it.

    Args:
        axes: With rounds to the right, each one wide and in the middle of its place.
        stages: Round -> stage.
    """
    begin = {stage: min(round for round, one in stages.items() if one == stage) for stage in set(stages.values())}
    for stage, first in sorted(begin.items()):
        if first > min(stages):
            axes.axvline(first - 0.5, color="black", linewidth=1.2)
        axes.annotate(
            f"stage {stage}", (first - 0.5, 1.0), (2, 2), xycoords=("data", "axes fraction"),
            textcoords="offset points", fontsize=8,
        )  # fmt: skip


def open_frame(axes: Any) -> None:
    """No lines above and on the right of the numbers, and faint ones behind them."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
