"""Searches on a function whose minimum is known."""

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from lit_fed.algorithms.search import Point, Search, grid_side, minimise, search_problems
from lit_fed.core.errors import LitFedError

pytestmark = pytest.mark.usefixtures("global_rng_untouched")
BOUNDS = (-0.5, 1.5)


class Bowl:
    """A quadratic with its minimum 3 at (0.7, 0.2)."""

    def __init__(self) -> None:
        self.seen: list[Point] = []

    def __call__(self, point: Point) -> float:
        self.seen.append(point)
        return 3 + (point[0] - 0.7) ** 2 + 2 * (point[1] - 0.2) ** 2


def each(function: Callable[[Point], float]) -> Callable[[Sequence[Point]], list[float]]:
    """A function of points, from one of a point."""
    return lambda points: [function(point) for point in points]


def run(
    search: Search, function: Callable[[Point], float], budget: int, start: tuple[float, float] = (0.5, 0.5)
) -> tuple[Point, float]:
    return minimise(each(function), search, start, BOUNDS, budget, seed=0)


def test_the_grid_has_corners_that_mean_something_and_finds_its_best_point() -> None:
    bowl = Bowl()
    point, value = run("grid", bowl, 169)
    assert len(set(bowl.seen)) == len(bowl.seen) == 169
    assert {(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (1.0, 1.0), (0.0, 0.0), (-0.5, 1.5)} <= set(bowl.seen)
    # Points are 1/6 apart: 2/3 is next to 0.7 (5/6 is 0.133 away), 1/6 next to 0.2.
    assert point == pytest.approx((2 / 3, 1 / 6))
    assert value == min(map(Bowl(), bowl.seen))


def test_of_a_point_and_its_negative_the_grid_finds_the_positive_one() -> None:
    """Factors times (w1, w2) and times (-w1, -w2) are one LoRA; means over clients want the same of the two."""
    point, value = run("grid", lambda w: (w[0] * w[1] - 0.25) ** 2, 25)
    assert (point, value) == ((0.5, 0.5), 0.0)


@pytest.mark.parametrize(
    ("budget", "dimensions", "side"), [(169, 2, 13), (168, 2, 12), (4, 2, 2), (3, 2, 1), (5, 1, 5)]
)
def test_the_largest_grid_within_a_budget(budget: int, dimensions: int, side: int) -> None:
    assert grid_side(budget, dimensions) == side


def test_nelder_mead_begins_with_a_wide_simplex_and_stops_at_the_budget() -> None:
    bowl = Bowl()
    point, value = run("nelder_mead", bowl, 5)
    assert bowl.seen[:3] == [(0.5, 0.5), (1.0, 0.5), (0.5, 1.0)]
    assert len(bowl.seen) == 5
    assert value == min(map(Bowl(), bowl.seen)) == Bowl()(point)


def test_nelder_mead_gets_there() -> None:
    point, _ = run("nelder_mead", Bowl(), 200)
    assert point == pytest.approx((0.7, 0.2), abs=1e-3)


def test_a_simplex_turns_away_from_the_bounds() -> None:
    bowl = Bowl()
    run("nelder_mead", bowl, 3, start=(1.5, 1.5))
    assert bowl.seen == [(1.5, 1.5), (1.0, 1.5), (1.5, 1.0)]


def test_no_point_is_evaluated_twice() -> None:
    """The minimum is beyond the bounds, where steps are cut back to the same corner."""
    bowl = Bowl()
    point, _ = minimise(each(bowl), "nelder_mead", (0.0, 0.0), (-1.0, 0.15), 60, 0)
    assert point == (0.15, 0.15)
    assert len(set(bowl.seen)) == len(bowl.seen)


def test_the_first_of_equals_wins_and_what_is_not_finite_loses() -> None:
    def function(point: Point) -> float:
        return math.nan if point == (-0.5, -0.5) else math.inf if point[0] == 1.5 else 1.0

    assert minimise(each(function), "grid", (0.5, 0.5), BOUNDS, 4, 0) == ((-0.5, 1.5), 1.0)


@pytest.mark.parametrize("search", ["grid", "nelder_mead"])
def test_nothing_finite_is_an_error(search: Search) -> None:
    with pytest.raises(LitFedError, match="finite value"):
        minimise(each(lambda point: math.nan), search, (0.5, 0.5), BOUNDS, 9, 0)


def test_nevergrad_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_fed.algorithms.search.find_spec", lambda name: None)
    (problem,) = search_problems("nevergrad")
    assert "`algorithm.search: nevergrad`" in problem
    assert "pip install lit-fed[nevergrad]" in problem
    assert search_problems("grid") == search_problems("nelder_mead") == []
    monkeypatch.setattr("lit_fed.algorithms.search.find_spec", lambda name: SimpleNamespace())
    assert search_problems("nevergrad") == []


@pytest.mark.skipif(find_spec("nevergrad") is None, reason="an extra")
def test_nevergrad() -> None:
    bowls = [Bowl(), Bowl()]
    found = [run("nevergrad", bowl, 40) for bowl in bowls]
    assert bowls[0].seen == bowls[1].seen
    assert len(bowls[0].seen) <= 40
    assert bowls[0].seen[0] == (0.5, 0.5)
    assert found[0][1] == min(map(Bowl(), bowls[0].seen)) < 3.2  # its start is 3.22
    assert all(-0.5 <= x <= 1.5 for point in bowls[0].seen for x in point)


class Passes(Bowl):
    """A bowl that takes several points, and notes how many at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def several(self, points: Sequence[Point]) -> list[float]:
        self.sizes.append(len(points))
        return [self(point) for point in points]


@pytest.mark.parametrize(
    ("search", "budget", "at_once", "sizes"),
    [
        ("grid", 169, 40, [40] * 4 + [9]),
        ("grid", 9, 100, [9]),
        ("grid", 10, 4, [4, 4, 1]),  # 3 x 3 points
        ("nelder_mead", 5, 2, [2, 1, 1, 1]),  # the simplex of three, then one after another
        ("nelder_mead", 5, 8, [3, 1, 1]),
        ("nelder_mead", 2, 8, [2]),
        ("nelder_mead", 1, 8, [1]),
    ],
)
def test_several_points_at_once_are_the_same_points(
    search: Search, budget: int, at_once: int, sizes: list[int]
) -> None:
    alone, together = Bowl(), Passes()
    expected = minimise(each(alone), search, (0.5, 0.5), BOUNDS, budget, 0)
    assert minimise(together.several, search, (0.5, 0.5), BOUNDS, budget, 0, at_once) == expected
    assert together.seen == alone.seen
    assert together.sizes == sizes
