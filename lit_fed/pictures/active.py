"""Which blocks of the model were trained by how many clients, round by round; all of them run."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_fed.pictures.canvas import block_axes, mark_stages, new_figure
from lit_fed.pictures.holders import fill_cells, grouped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_trainers", "trainers"]

_FROZEN = "0.92"  # as faint as the grid, light or dark; no alarm: a block that is not active yet is meant to be frozen


def trainers(rows: Sequence[Mapping[str, Any]], num_blocks: int | None = None) -> np.ndarray | None:
    """How many clients trained a block in a round.

    Args:
        rows: Of ``clients.csv``; ``turn/lowest_block`` and ``turn/active_blocks`` say what a client trained.
        num_blocks: Blocks of the model; if it is not known, as many as were seen.

    Returns:
        Counts, ``(blocks, rounds)``; `None` if the rows do not say what was trained.
    """
    told = [row for row in rows if "turn/lowest_block" in row and "turn/active_blocks" in row]
    if not told:
        return None
    spans = [
        (row["round"], int(row["turn/lowest_block"]), int(row["turn/lowest_block"] + row["turn/active_blocks"]))
        for row in told
    ]
    num_rounds = 1 + max(row["round"] for row in rows)
    counts = np.zeros((max(num_blocks or 0, *(end for _, _, end in spans)), num_rounds), dtype=np.int64)
    for round, start, end in spans:
        counts[start:end, round] += 1
    return counts


def draw_trainers(counts: np.ndarray, stages: Mapping[int, int]) -> "Figure":
    """A heat map, rounds to the right and blocks upwards, with a line where a stage begins.

    Args:
        counts: Clients that trained a block in a round, ``(blocks, rounds)``.
        stages: Round -> stage.
    """
    num_blocks = len(counts)
    edges, means, step = grouped(counts)
    figure = new_figure(8, float(np.clip(1.6 + 0.22 * num_blocks, 2.8, 14)))
    axes = figure.subplots()
    cells = fill_cells(axes, edges - 0.5, means, step == 1, _FROZEN)
    block_axes(figure, axes, cells, num_blocks, "clients that\ntrain the block", step)
    mark_stages(axes, stages)
    return figure
