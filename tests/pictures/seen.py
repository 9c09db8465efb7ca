"""What an eye would notice in a figure that was drawn."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from matplotlib.text import Text


def apart(boxes: Sequence[Any]) -> bool:
    """Whether no box lies upon another."""
    assert boxes
    return all(not one.overlaps(other) for one, other in combinations(boxes, 2))


def texts(axes: Any) -> list[Any]:
    """Boxes of the texts in or beside axes, without lines that lead to them."""
    return [Text.get_window_extent(text) for text in axes.texts]


def ticks(axis: Any) -> list[Any]:
    """Boxes of the labels of an axis that are within it."""
    low, high = sorted(axis.get_view_interval())
    return [
        tick.label1.get_window_extent()
        for tick in axis.get_major_ticks()
        if low <= tick.get_loc() <= high and tick.label1.get_visible() and tick.label1.get_text()
    ]
