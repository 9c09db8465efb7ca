"""What a client gains by predicting with something of its own: its serving against the global one, on its own data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_fed.pictures.canvas import COLOURS, name_rows, new_figure, open_frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Pairs", "draw_pairs", "pairs"]

_NAMED_UP_TO = 40  # clients that get a line and a name each
_LOOKS = {"global": (COLOURS[0], "o", 8.0), "own": (COLOURS[5], "D", 4.5)}
"""Colour, marker and its size: the global one is behind, and is seen around the other where both are equal."""


@dataclass(frozen=True)
class Pairs:
    """One metric of two servings on every client's own test data."""

    metric: str
    clients: tuple[str, ...]
    """In the order of their ids."""
    values: Mapping[str, np.ndarray]
    """``global`` and ``own``, ``(clients,)``."""
    summaries: Mapping[str, Mapping[str, float]]
    """``global`` and ``own`` -> ``mean``, ``worst`` and ``std`` over the clients."""


def pairs(
    scores: Mapping[str, Mapping[str, Mapping[str, float]]],
    metric: str,
    summarize: Callable[[Sequence[float]], Mapping[str, float]],
) -> Pairs | None:
    """Those clients that have the metric of both servings.

    Args:
        scores: Of ``clients.json``.
        metric: Such as ``accuracy``.
        summarize: Gives ``mean``, ``worst`` and ``std`` of values.

    Returns:
        `None` if there is no such client.
    """
    both = sorted(client for client, own in scores.items() if all(metric in own.get(which, {}) for which in _LOOKS))
    if not both:
        return None
    values = {which: [scores[client][which][metric] for client in both] for which in _LOOKS}
    return Pairs(
        metric,
        tuple(both),
        {which: np.array(own) for which, own in values.items()},
        {which: summarize(own) for which, own in values.items()},
    )


def draw_pairs(found: Pairs) -> "Figure":
    """Left, each client's two values; right, their mean, worst and spread."""
    named = len(found.clients) <= _NAMED_UP_TO
    height = float(np.clip(1.8 + 0.22 * len(found.clients), 3.2, 12)) if named else 4.2
    figure = new_figure(9, height)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    (_lines if named else _curves)(left, found, height)
    _summary(right, found)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False, fontsize="small")
    return figure


def _lines(axes: Any, found: Pairs, height: float) -> None:
    open_frame(axes)
    places = np.arange(len(found.clients))
    axes.hlines(places, found.values["global"], found.values["own"], color="0.6", linewidth=1.5, zorder=1)
    for which, (colour, marker, size) in _LOOKS.items():
        axes.plot(found.values[which], places, marker, color=colour, markersize=size, linestyle="", label=_words(which))
    axes.set_xlabel(f"{found.metric} on the client's own test data")
    name_rows(axes, found.clients, height, "client")


def _curves(axes: Any, found: Pairs, height: float) -> None:
    open_frame(axes)
    for which, (colour, *_) in _LOOKS.items():
        axes.plot(np.arange(1, len(found.clients) + 1), np.sort(found.values[which]), color=colour, label=_words(which))
    axes.set_xlabel(f"{len(found.clients)} clients, each curve sorted by itself")
    axes.set_ylabel(f"{found.metric} on the client's own test data")


def _summary(axes: Any, found: Pairs) -> None:
    open_frame(axes)
    axes.grid(False, axis="x")
    rows = {"mean": "mean", "worst": "worst client", "std": "spread (std)"}
    for shift, (which, (colour, *_)) in zip((-0.2, 0.2), _LOOKS.items(), strict=True):
        bars = axes.bar(np.arange(len(rows)) + shift, [found.summaries[which][key] for key in rows], 0.36, color=colour)
        axes.bar_label(bars, fmt="%.3f", fontsize=8, padding=2)
    axes.set_xticks(range(len(rows)), list(rows.values()))
    axes.set_ylabel(f"{found.metric}, over {len(found.clients)} clients")
    axes.margins(y=0.12)


def _words(which: str) -> str:
    return {"global": "global: what a new client gets", "own": "personal: the client's own"}[which]
