"""How good the result was after each evaluated round: of the global serving by domain, and of the clients' own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_fed.pictures.canvas import COLOURS, new_figure, open_frame, short, whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Scores", "draw_scores", "room_between", "scores"]

_NAMED_UP_TO = 2 * len(COLOURS)  # lines that can be told apart: each colour solid and dashed
_MARKED_UP_TO = 40  # evaluations that have room for a point each
_HEIGHT = 4.2  # inches
_FONT = 8.5  # points


@dataclass(frozen=True)
class Scores:
    """One metric at every evaluation; NaN where an evaluation did not give it."""

    metric: str
    rounds: np.ndarray
    """Rounds finished, ``(evaluations,)``; 0 is before the first."""
    overall: np.ndarray
    """Of the global serving on all domains' test data, ``(evaluations,)``."""
    domains: Mapping[str, np.ndarray]
    """Domain -> its part of it, ``(evaluations,)``."""
    personal: Mapping[str, np.ndarray]
    """``mean`` and ``worst`` over the clients, of each one's own serving on its own test data, ``(evaluations,)``."""


def scores(metric: str, rows: Sequence[Mapping[str, Any]], initial: Mapping[str, float]) -> Scores | None:
    """The evaluations of a run.

    Args:
        metric: Such as ``accuracy``.
        rows: Of ``metrics.csv``.
        initial: The scores before the first round, by the same names; empty if it was not evaluated.

    Returns:
        `None` if the metric was never reported, or never as a finite number.
    """
    names = {f"global/{metric}": "overall", f"personal/{metric}_mean": "mean", f"personal/{metric}_worst": "worst"}
    marker = f"global/{metric}/"
    evaluated: list[tuple[int, Mapping[str, Any]]] = [(0, initial), *((row["round"] + 1, row) for row in rows)]
    evaluated = [(done, found) for done, found in evaluated if names.keys() & found.keys()]
    if not evaluated:
        return None
    domains = dict.fromkeys(name for _, found in evaluated for name in found if name.startswith(marker))

    def column(name: str) -> np.ndarray:
        return np.array([found.get(name, np.nan) for _, found in evaluated], dtype=float)

    columns = {key: column(name) for name, key in names.items()}
    if not any(np.isfinite(values).any() for values in columns.values()):
        return None
    return Scores(
        metric,
        np.array([done for done, _ in evaluated]),
        columns["overall"],
        {name.removeprefix(marker): values for name in domains if np.isfinite(values := column(name)).any()},
        {key: columns[key] for key in ("mean", "worst") if np.isfinite(columns[key]).any()},
    )


def draw_scores(found: Scores) -> "Figure":
    """Lines over rounds, named where they end: domains on the left, clients on the right."""
    lines = _global_lines(found)
    parts = [("global: what a new client gets, on each domain's test data", lines)] if lines else []
    if found.personal:
        looks: dict[str, dict[str, Any]] = {
            "mean": {"color": "black", "linewidth": 2.2},
            "worst": {"color": COLOURS[-1]},
        }
        own = [(f"{key} of clients", values, looks[key]) for key, values in found.personal.items()]
        parts.append(("personal: own serving, own test data", own))
    figure = new_figure(6.4 + 3.8 * (len(parts) - 1), _HEIGHT)
    grid = figure.subplots(1, len(parts), sharey=True, squeeze=False, width_ratios=[5, 3][: len(parts)])[0]
    every = np.concatenate([values for _, part in parts for _, values, _ in part])
    low, high = _limits(every[np.isfinite(every)], found.metric)
    for axes, (title, part) in zip(grid, parts, strict=True):
        open_frame(axes)
        axes.set_title(title, fontsize="medium", loc="left")
        axes.set_xlabel("rounds finished")
        axes.set_ylim(low, high)
        axes.set_xlim(*_span(found.rounds))
        whole_numbers(axes.xaxis, 5)
        _lines(axes, found.rounds, part, low, high)
    grid[0].set_ylabel(found.metric)
    return figure


def _global_lines(found: Scores) -> list[tuple[str, np.ndarray, dict[str, Any]]]:
    """Name, values and look of each line; of too many domains only the lowest and the highest at the end are named."""
    lines: list[tuple[str, np.ndarray, dict[str, Any]]] = []
    if len(found.domains) <= _NAMED_UP_TO:
        for place, (domain, values) in enumerate(found.domains.items()):
            style = "-" if place < len(COLOURS) else "--"
            lines.append((domain, values, {"color": COLOURS[place % len(COLOURS)], "linestyle": style}))
    else:
        ends = {domain: values[np.isfinite(values)][-1] for domain, values in found.domains.items()}
        named = {min(ends, key=ends.__getitem__): COLOURS[-1], max(ends, key=ends.__getitem__): COLOURS[0]}
        for domain, values in found.domains.items():
            known = domain in named
            look = {"color": named[domain]} if known else {"color": "0.8", "linewidth": 0.8, "marker": "", "zorder": 1}
            lines.append((domain if known else "", values, look))
    if len(found.domains) != 1 and np.isfinite(found.overall).any():
        lines.append(("all domains", found.overall, {"color": "black", "linewidth": 2.2}))
    return lines


def _lines(
    axes: Any, rounds: np.ndarray, lines: Sequence[tuple[str, np.ndarray, dict[str, Any]]], low: float, high: float
) -> None:
    ends = []
    for name, values, look in lines:
        there = np.isfinite(values)
        if there.any():
            marker = "o" if len(rounds) <= _MARKED_UP_TO else ""
            axes.plot(rounds[there], values[there], **{"marker": marker, "markersize": 3, "linewidth": 1.5, **look})
            if name:
                ends.append((values[there][-1], rounds[there][-1], name, look["color"]))
    gap = (high - low) * 1.25 * _FONT / (0.7 * _HEIGHT * 72)  # a line of text, in the unit of the scale
    for (value, done, name, colour), place in zip(
        ends, room_between([end[0] for end in ends], gap, low, high), strict=True
    ):
        axes.annotate(
            f"{short(name)} {value:.3f}", (done, value), (1.05, place), textcoords=axes.get_yaxis_transform(),
            va="center", fontsize=_FONT, color=colour, annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 2, "relpos": (0, 0.5),
            },
        )  # fmt: skip


def room_between(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places as near to `wanted` as their order, a gap between neighbours and the limits allow.

    Where not all fit, the gap is made smaller.
    """
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    places: list[float] = []
    for number, index in enumerate(order):  # upwards, each clear of the one below it
        places.append(max(wanted[index], low, places[-1] + gap if number else low))
    ceiling = high
    for number in reversed(range(len(places))):  # what was pushed out of the top comes back down
        places[number] = min(places[number], ceiling)
        ceiling = places[number] - gap
    return [places[order.index(index)] for index in range(len(wanted))]


def _limits(values: np.ndarray, metric: str) -> tuple[float, float]:
    least, most = float(values.min()), float(values.max())
    margin = 0.06 * (most - least) or 0.05 * abs(most) or 0.05
    low, high = least - margin, most + margin
    return (max(low, -0.02), min(high, 1.02)) if "accuracy" in metric else (low, high)


def _span(rounds: np.ndarray) -> tuple[float, float]:
    first, last = float(rounds.min()), float(rounds.max())
    margin = 0.02 * (last - first) or 0.5
    return first - margin, last + margin
