"""Gradient-free search over a few numbers, for functions that cost an evaluation of the model."""

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import product
from typing import Literal

from lit_fed.core.errors import LitFedError
from lit_fed.core.seeding import isolated_rng

Search = Literal["grid", "nelder_mead", "nevergrad"]
Point = tuple[float, ...]
_STEP = 0.5
"""Edge of Nelder-Mead's first simplex. SciPy's own, 5 % of the start, leaves a budget of 5 where it began."""


def search_problems(search: Search) -> list[str]:
    """Why a search cannot be run here."""
    if search != "nevergrad" or find_spec("nevergrad") is not None:
        return []
    return [
        "Expected the package `nevergrad` for `algorithm.search: nevergrad`, but it is not installed. Run "
        "`pip install lit-fed[nevergrad]`, or use `nelder_mead` or `grid`."
    ]


def grid_side(budget: int, dimensions: int) -> int:
    """Points of the largest grid along each dimension that a budget allows."""
    side = 1
    while (side + 1) ** dimensions <= budget:
        side += 1
    return side


def minimise(
    function: Callable[[Sequence[Point]], Sequence[float]],
    search: Search,
    start: Sequence[float],
    bounds: tuple[float, float],
    budget: int,
    seed: int,
    at_once: int = 1,
) -> tuple[Point, float]:
    """The best point that was evaluated, the first of equals, and its value.

    Args:
        function: What to minimise, at one or several points. A value that is not finite is worse than any other.
        search: ``"grid"``: equally spaced, bounds included, the largest first; ``"nelder_mead"``: SciPy's, the first
            simplex 0.5 wide; ``"nevergrad"``: NGOpt.
        start: The first point; a grid has none.
        bounds: Least and greatest value of every coordinate.
        budget: Evaluations, at most; a grid needs two along each dimension.
        seed: For ``"nevergrad"``, the only one that draws.
        at_once: How many points the function is given at once, at most, where the next does not depend on the last:
            all of a grid, and Nelder-Mead's first simplex. The points and their order are the same.

    Raises:
        LitFedError: If no value was finite.
    """
    record = _Record(function, budget, at_once)
    run = {"grid": _grid, "nelder_mead": _nelder_mead, "nevergrad": _nevergrad}[search]
    with suppress(_BudgetSpent):
        run(record, tuple(float(x) for x in start), bounds, budget, seed)
    best = min(record.values, key=record.values.__getitem__)
    if record.values[best] == sys.float_info.max:
        raise LitFedError(f"Expected a finite value at one of {len(record.values)} points, but got none.")
    return best, record.values[best]


class _BudgetSpent(Exception):  # noqa: N818 - the ordinary end of a search
    """The budget is used up."""


class _Record:
    """A function that remembers: no point is evaluated twice, and none beyond the budget."""

    def __init__(self, function: Callable[[Sequence[Point]], Sequence[float]], budget: int, at_once: int) -> None:
        self.function, self.budget, self.at_once = function, budget, at_once
        self.values: dict[Point, float] = {}

    def __call__(self, coordinates: Sequence[float]) -> float:
        point = tuple(float(x) for x in coordinates)
        if point not in self.values:
            if len(self.values) == self.budget:
                raise _BudgetSpent
            self._evaluate([point])
        return self.values[point]

    def all(self, points: Sequence[Point]) -> None:
        """Evaluate different points, several at once, as far as the budget goes."""
        for first in range(0, min(len(points), self.budget), self.at_once):
            self._evaluate(points[first : min(first + self.at_once, self.budget)])

    def _evaluate(self, points: Sequence[Point]) -> None:
        for point, value in zip(points, self.function(points), strict=True):
            # Nelder-Mead subtracts values, and infinity minus infinity is not a number.
            self.values[point] = value if math.isfinite(value) else sys.float_info.max


def _grid(record: _Record, start: Point, bounds: tuple[float, float], budget: int, seed: int) -> None:
    low, high = bounds
    side = grid_side(budget, len(start))
    axis = [low + (high - low) * i / (side - 1) for i in range(side)]
    record.all(list(product(reversed(axis), repeat=len(start))))


def _nelder_mead(record: _Record, start: Point, bounds: tuple[float, float], budget: int, seed: int) -> None:
    from scipy.optimize import minimize  # takes a second to import

    step = min(_STEP, (bounds[1] - bounds[0]) / 2)
    simplex = [start]
    for i, x in enumerate(start):
        corner = list(start)
        corner[i] = x + step if x + step <= bounds[1] else x - step
        simplex.append(tuple(corner))
    record.all(simplex)
    options = {"initial_simplex": simplex, "maxfev": budget}
    minimize(record, start, method="Nelder-Mead", bounds=[bounds] * len(start), options=options)


def _nevergrad(record: _Record, start: Point, bounds: tuple[float, float], budget: int, seed: int) -> None:
    with isolated_rng(seed, "nevergrad"):  # it draws from the global generators, when it is imported and later
        import nevergrad  # an optional extra

        space = nevergrad.p.Array(init=start, lower=bounds[0], upper=bounds[1])
        nevergrad.optimizers.NGOpt(parametrization=space, budget=budget).minimize(record)
