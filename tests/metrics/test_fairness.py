import math
import statistics

import pytest

from lit_fed.metrics import fairness

VALUES = [0.9, 0.5, 0.7, 0.3]


def test_against_the_standard_library() -> None:
    assert fairness.mean(VALUES) == pytest.approx(statistics.mean(VALUES), abs=1e-12)
    assert fairness.std(VALUES) == pytest.approx(statistics.pstdev(VALUES), abs=1e-12)


def test_worst_depends_on_what_is_better() -> None:
    assert fairness.worst(VALUES) == 0.3
    assert fairness.worst(VALUES, higher_is_better=False) == 0.9


def test_worst_share_is_rounded_up_to_clients() -> None:
    assert fairness.worst_share(VALUES) == 0.3  # 10 % of 4 is less than one client
    assert fairness.worst_share(VALUES, 0.5) == pytest.approx(0.4)  # (0.3 + 0.5) / 2
    assert fairness.worst_share(VALUES, 0.5, higher_is_better=False) == pytest.approx(0.8)
    assert fairness.worst_share(range(30)) == 1.0  # exactly three of thirty: (0 + 1 + 2) / 3
    assert fairness.worst_share(VALUES, 1.0) == fairness.mean(VALUES)


def test_jain_at_its_ends() -> None:
    assert fairness.jain([0.4] * 5) == pytest.approx(1.0)
    assert fairness.jain([1, 0, 0, 0]) == 0.25
    assert fairness.jain([1, 3]) == 0.8  # 16 / (2 * 10)
    assert fairness.jain([0, 0]) == 1.0


def test_order_of_clients_changes_nothing() -> None:
    values = [0.1, 0.7, 1e-9, 0.3, 1e9, 0.2]
    assert fairness.spread(values) == fairness.spread(values[::-1])


def test_spread_of_one_client() -> None:
    assert fairness.spread([0.5]) == {"mean": 0.5, "std": 0.0, "worst": 0.5, "worst_10_percent": 0.5}


@pytest.mark.parametrize("values", [[], [0.1, math.nan]])
def test_refuses_what_has_no_answer(values: list[float]) -> None:
    with pytest.raises(ValueError, match="Expected `values`"):
        fairness.spread(values)


def test_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"Expected `share` to be in \(0, 1\], but got 0"):
        fairness.worst_share(VALUES, 0)
    with pytest.raises(ValueError, match="Expected `values` to be >= 0, but got -1"):
        fairness.jain([1, -1])
