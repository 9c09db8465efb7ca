"""How much of its own expert each client uses, round by round, by the gate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_fed.pictures.canvas import name_rows, new_figure, whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["GateWeights", "draw_gate", "gate_weights"]

# Beside the blue and orange of lines: those follow the page (`lit_fed.pictures.svg`), and shades of a scale must not.
_SCALE = ["#0171B1", "#F2F2F2", "#D45D01"]


@dataclass(frozen=True)
class GateWeights:
    """The mean weight of the client's own expert over the examples it trained on."""

    clients: tuple[str, ...]
    """In the order of their ids."""
    rounds: np.ndarray
    """From the first round that has one to the last, ``(rounds,)``."""
    weights: np.ndarray
    """In [0, 1], NaN where a client had no turn, ``(clients, rounds)``."""


def gate_weights(rows: Sequence[Mapping[str, Any]]) -> GateWeights | None:
    """The column ``turn/gate_local`` of ``clients.csv``; `None` if there is none."""
    told = [row for row in rows if "turn/gate_local" in row]
    if not told:
        return None
    clients = sorted({row["client"] for row in told})
    first, last = min(row["round"] for row in told), max(row["round"] for row in told)
    weights = np.full((len(clients), last - first + 1), np.nan)
    for row in told:
        weights[clients.index(row["client"]), row["round"] - first] = row["turn/gate_local"]
    return GateWeights(tuple(clients), np.arange(first, last + 1), weights)


def draw_gate(found: GateWeights) -> "Figure":
    """A heat map, rounds to the right and clients downwards: blue is the global expert, orange the client's own."""
    from matplotlib.colors import LinearSegmentedColormap

    height = float(np.clip(1.6 + 0.22 * len(found.clients), 2.6, 12))
    figure = new_figure(8, height)
    axes = figure.subplots()
    colours = LinearSegmentedColormap.from_list("experts", _SCALE)
    edges = np.append(found.rounds, found.rounds[-1] + 1) - 0.5
    # The scale is as wide as the weights are, and even on both sides, so that 1/2 is always the light middle.
    most = max(0.01, float(np.nanmax(np.abs(found.weights - 0.5))))
    cells = axes.pcolormesh(
        edges, np.arange(len(found.clients) + 1) - 0.5, np.ma.masked_invalid(found.weights),
        cmap=colours, vmin=0.5 - most, vmax=0.5 + most,
    )  # fmt: skip
    axes.set_facecolor("0.8")
    axes.set_xlabel("round" + (" (grey: no turn)" if np.isnan(found.weights).any() else ""))
    whole_numbers(axes.xaxis)
    name_rows(axes, found.clients, height, "client")
    figure.colorbar(cells, ax=axes, label="mean weight of\nthe client's own expert", pad=0.02, aspect=30)
    return figure
