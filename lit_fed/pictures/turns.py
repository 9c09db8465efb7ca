"""What a round costs each client: bytes up, bytes down, seconds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_fed.pictures.canvas import COLOURS, byte_unit, name_rows, new_figure, open_frame, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Turns", "draw_turns", "turns"]

_NAMED_UP_TO = 40  # clients that get a bar and a name each
_MEASURES = ("up_bytes", "down_bytes", "seconds")


@dataclass(frozen=True)
class Turns:
    """What the turns of every client took, over the rounds it took part in."""

    clients: tuple[str, ...]
    """In the order of their ids."""
    measures: Mapping[str, np.ndarray]
    """``up_bytes``, ``down_bytes``, ``seconds`` -> least, mean and most of a round, ``(clients, 3)``."""


def turns(rows: Sequence[Mapping[str, Any]]) -> Turns | None:
    """Least, mean and most over each client's rounds.

    Args:
        rows: Of ``clients.csv``; those of clients that were only evaluated are passed over.

    Returns:
        `None` if nobody had a turn.
    """
    found: dict[str, list[list[float]]] = {}
    for row in rows:
        if all(name in row for name in _MEASURES):
            found.setdefault(row["client"], []).append([float(row[name]) for name in _MEASURES])
    if not found:
        return None
    own = [np.array(found[client]) for client in sorted(found)]
    spread = np.stack([[values.min(axis=0), values.mean(axis=0), values.max(axis=0)] for values in own])
    return Turns(tuple(sorted(found)), {name: spread[:, :, place] for place, name in enumerate(_MEASURES)})


def draw_turns(taken: Turns) -> "Figure":
    """A bar a client (its mean, with a line from least to most); of many clients, the sorted means in such a band."""
    named = len(taken.clients) <= _NAMED_UP_TO
    height = float(np.clip(1.2 + 0.22 * len(taken.clients), 2.4, 12)) if named else 3.4
    figure = new_figure(10, height)
    all_axes = figure.subplots(1, 3, sharey=named)
    size, unit = byte_unit(max(taken.measures[name].max() for name in ("up_bytes", "down_bytes")))
    titles = {"up_bytes": (size, f"up, {unit} a round"), "down_bytes": (size, f"down, {unit} a round")}
    for axes, name, colour in zip(all_axes, _MEASURES, COLOURS, strict=False):
        scale, label = titles.get(name, (1.0, "seconds a round"))
        (_bars if named else _band)(axes, taken.clients, taken.measures[name] / scale, label, colour)
    if named:
        name_rows(all_axes[0], taken.clients, height, "client")
        figure.set_layout_engine("constrained", wspace=0.06)  # or last and first numbers of panels meet
        figure.supxlabel("mean over a client's rounds; the line goes from its least to its most", fontsize="small")
    return figure


def _bars(axes: Any, clients: Sequence[str], spread: np.ndarray, label: str, colour: str) -> None:
    open_frame(axes)
    axes.grid(False, axis="y")
    places = np.arange(len(clients))
    axes.barh(places, spread[:, 1], height=0.7, color=colour, alpha=0.75)
    axes.hlines(places, spread[:, 0], spread[:, 2], color="black", linewidth=1.2)
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel(label)
    axes.set_xlim(0, 1.05 * _most(spread))


def _band(axes: Any, clients: Sequence[str], spread: np.ndarray, label: str, colour: str) -> None:
    open_frame(axes)
    order = np.lexsort((np.arange(len(clients)), -spread[:, 1]))
    least, mean, most = spread[order].T
    places = np.arange(1, len(order) + 1)
    axes.fill_between(places, least, most, color=colour, alpha=0.25, linewidth=0, label="least to most")
    axes.plot(places, mean, ".", color=colour, markersize=3, label="mean over its rounds")
    axes.set_xlim(0, len(order) + 1)
    axes.set_ylim(0, 1.45 * _most(spread))
    axes.set_xlabel(f"{len(order)} clients, sorted")
    axes.set_ylabel(label)
    first, last = (f"{short(clients[order[place]])} ({mean[place]:.3g})" for place in (0, -1))
    axes.set_title(f"most: {first}\nleast: {last}", fontsize="small", loc="left")
    axes.legend(loc="upper right", fontsize="x-small", frameon=False)


def _most(spread: np.ndarray) -> float:
    return float(spread.max()) or 1.0
