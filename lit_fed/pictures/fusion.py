"""What each client's fusion gave to its personalised LoRA, and what to the global one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_fed.pictures.canvas import COLOURS, name_rows, new_figure, open_frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FusionWeights", "draw_fusion", "fusion_weights"]

_NAMED_UP_TO = 40  # clients that get a row and a name each
_LOOKS = {"personal": (COLOURS[5], "D", -0.16), "global": (COLOURS[0], "o", 0.16)}


@dataclass(frozen=True)
class FusionWeights:
    """The weights of each client's last fusion."""

    clients: tuple[str, ...]
    """In the order of their ids."""
    weights: Mapping[str, np.ndarray]
    """``personal`` and ``global``, ``(clients,)``."""


def fusion_weights(rows: Sequence[Mapping[str, Any]]) -> FusionWeights | None:
    """The columns ``turn/weight_personal`` and ``turn/weight_global`` of ``clients.csv``; `None` if there are none."""
    last = {row["client"]: row for row in rows if all(f"turn/weight_{which}" in row for which in _LOOKS)}
    if not last:
        return None
    clients = tuple(sorted(last))
    found = {which: np.array([last[client][f"turn/weight_{which}"] for client in clients]) for which in _LOOKS}
    return FusionWeights(clients, found)


def draw_fusion(found: FusionWeights) -> "Figure":
    """A row for each client with its two weights; of many clients, how many have which pair of weights."""
    if len(found.clients) > _NAMED_UP_TO:
        return _plane(found)
    height = float(np.clip(1.8 + 0.26 * len(found.clients), 2.8, 12))
    figure = new_figure(8, height)
    axes = figure.subplots()
    open_frame(axes)
    axes.axvline(0, color="0.6", linewidth=1)
    for which, (colour, marker, shift) in _LOOKS.items():
        places = np.arange(len(found.clients)) + shift
        axes.hlines(places, 0, found.weights[which], color=colour, linewidth=1.5)
        axes.plot(found.weights[which], places, marker, color=colour, markersize=5, label=f"{which} LoRA")
    axes.set_xlabel("weight in the client's fused adapter")
    name_rows(axes, found.clients, height, "client")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False, fontsize="small")
    return figure


def _plane(found: FusionWeights) -> "Figure":
    pairs, counts = np.unique(np.stack(list(found.weights.values()), 1).round(3), axis=0, return_counts=True)
    figure = new_figure(6, 4.8)
    axes = figure.subplots()
    open_frame(axes)
    axes.scatter(pairs[:, 1], pairs[:, 0], 40 + 560 * counts / counts.max(), color=COLOURS[0], alpha=0.6, linewidth=0)
    for (personal, shared), count in zip(pairs, counts, strict=True):
        if count > 1:
            axes.annotate(str(count), (shared, personal), ha="center", va="center", fontsize=8)
    axes.set_xlabel(f"weight of the global LoRA ({len(found.clients)} clients; numbers: clients in one place)")
    axes.set_ylabel("weight of the personal LoRA")
    axes.margins(0.15)
    return figure
