"""Which blocks of the model were held by how many clients, round by round."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_fed.pictures.canvas import MISSING, ON_DARK, ON_LIGHT, block_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_holders", "fill_cells", "grouped", "holders"]

_MOST_COLUMNS = 300  # more than these are narrower than three pixels
_NUMBERED_UP_TO = 24  # columns whose cells have room for a number
_SHADES_UP_TO = 8  # more shades than these cannot be told apart: a continuous scale


def holders(rows: Sequence[Mapping[str, Any]], num_blocks: int | None = None) -> np.ndarray | None:
    """How many clients held a block in a round and sent back what they made of it.

    Args:
        rows: Of ``clients.csv``; a client that failed held nothing, one that was only evaluated neither.
        num_blocks: Blocks of the model; if it is not known, as many as were seen.

    Returns:
        Counts, ``(blocks, rounds)``; `None` if everyone held all blocks, or if the rows do not say who held which.
    """
    turns = [row for row in rows if "blocks" in row]
    if not any("allocation" in row for row in turns):
        return None
    held = [_blocks(row) for row in turns]
    num_blocks = max(num_blocks or 0, *(max(blocks, default=-1) + 1 for blocks in held))
    if any("allocation" not in row and 0 < row["blocks"] < num_blocks for row in turns):
        return None  # tables that were begun before they had this column
    counts = np.zeros((num_blocks, 1 + max(row["round"] for row in turns)), dtype=np.int64)
    for row, blocks in zip(turns, held, strict=True):
        if "failure" not in row:
            counts[blocks, row["round"]] += 1
    return counts


def _blocks(row: Mapping[str, Any]) -> list[int]:
    named = row.get("allocation")
    return list(range(row["blocks"])) if named is None else [int(block) for block in str(named).split()]


def draw_holders(counts: np.ndarray) -> "Figure":
    """A heat map, rounds to the right and blocks upwards; what nobody held stands out.

    Args:
        counts: Clients that held a block in a round, ``(blocks, rounds)``.
    """
    from matplotlib.patches import Patch

    num_blocks = len(counts)
    edges, means, step = grouped(counts)
    figure = new_figure(9, float(np.clip(1.5 + 0.22 * num_blocks, 2.8, 14)))
    gaps = (counts == 0).sum(axis=1)
    if gaps.any():
        axes, beside = figure.subplots(1, 2, sharey=True, width_ratios=[7, 1])
        _gaps(beside, gaps)
        label = "held by nobody" + (f" for {step} rounds" if step > 1 else "")
        axes.legend(
            handles=[Patch(color=MISSING, label=label)],
            loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2, frameon=False, fontsize="small",
        )  # fmt: skip
    else:
        axes = figure.subplots()
    cells = fill_cells(axes, edges - 0.5, means, step == 1, MISSING)
    block_axes(figure, axes, cells, num_blocks, "clients that\nhold the block", step)
    return figure


def grouped(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Neighbouring rounds together, if there are more than can be seen.

    Args:
        counts: A column a round, ``(blocks, rounds)``.

    Returns:
        Where each column begins and the last one ends, their means ``(blocks, columns)``, and rounds of a column.
    """
    num_rounds = counts.shape[1]
    step = -(-num_rounds // _MOST_COLUMNS)
    edges = np.append(np.arange(0, num_rounds, step), num_rounds)
    return edges, np.add.reduceat(counts, edges[:-1], axis=1) / np.diff(edges), step


def fill_cells(axes: Any, edges: np.ndarray, means: np.ndarray, whole: bool, missing: str) -> Any:
    """Draw numbers of clients in shades of blue, and nobody in a colour of its own.

    Args:
        axes: Where.
        edges: Of the columns.
        means: Shape ``(blocks, columns)``.
        whole: Whether they are whole numbers.
        missing: The colour for 0.

    Returns:
        What a colour bar is made for.
    """
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap, Normalize

    most = max(1.0, float(means.max()))
    blues = LinearSegmentedColormap.from_list("held", colormaps["Blues"](np.linspace(0.15, 1.0, 256)))
    few = whole and most <= _SHADES_UP_TO
    norm = BoundaryNorm(np.arange(0.5, most + 1), 256) if few else Normalize(1.0 if whole else 0.0, max(most, 2.0))
    cells = axes.pcolormesh(edges, np.arange(len(means) + 1) - 0.5, np.ma.masked_equal(means, 0), cmap=blues, norm=norm)
    axes.set_facecolor(missing)
    if whole and means.shape[1] <= _NUMBERED_UP_TO:
        for (block, place), value in np.ndenumerate(means):
            if value == 0 and missing != MISSING:
                continue
            dark = value == 0 or value > 0.6 * most
            axes.text(
                place, block, f"{value:.0f}", ha="center", va="center", fontsize=7, color=ON_DARK if dark else ON_LIGHT
            )
    return cells


def _gaps(axes: Any, gaps: np.ndarray) -> None:
    axes.barh(np.arange(len(gaps)), gaps, color=MISSING, height=0.7)
    for block, number in enumerate(gaps):
        if number:
            axes.annotate(str(number), (number, block), (2, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_xlim(0, 1.3 * gaps.max())
    axes.set_xticks([])
    axes.set_xlabel("rounds held\nby nobody")
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(labelleft=False)
