"""Means, spreads and paired tests, by hand: Student's t has closed forms for one and two degrees of freedom."""

import math
import warnings

import pytest

from lit_fed.suite.seeds import PairedTest, Spread, least_difference, paired_test


def two_sided_p(t: float, degrees: int) -> float:
    """F(t) = 1/2 + atan(t)/pi for one degree of freedom, 1/2 + t / (2 sqrt(2 + t^2)) for two."""
    return 1 - 2 * math.atan(t) / math.pi if degrees == 1 else 1 - t / math.sqrt(2 + t * t)


def test_the_spread_is_that_of_a_sample() -> None:
    assert Spread.of([1.0, 2.0, 3.0]) == Spread(2.0, 1.0)  # sqrt((1 + 0 + 1) / (3 - 1))
    assert Spread.of([0.5]) == Spread(0.5, None)


def test_three_seeds() -> None:
    # Differences 1, 2, 3: mean 2, standard deviation 1, t = 2 / (1 / sqrt 3).
    found = paired_test({0: 3.0, 1: 5.0, 2: 7.0}, {0: 2.0, 1: 3.0, 2: 4.0})
    assert found is not None
    assert found.p == pytest.approx(two_sided_p(2 * math.sqrt(3), 2), rel=1e-9)
    assert found == PairedTest(2.0, found.p, 3)


def test_pairs_are_by_seed_and_seeds_without_a_partner_are_left_out() -> None:
    # Differences 1 and 3: mean 2, standard deviation sqrt 2, t = 2.
    found = paired_test({4: 8.0, 9: 100.0, 1: 2.0}, {1: 1.0, 4: 5.0, 7: -100.0})
    assert found is not None
    assert (found.difference, found.num_seeds) == (2.0, 2)
    assert found.p == pytest.approx(two_sided_p(2.0, 1), rel=1e-9)
    assert paired_test({0: 1.0}, {1: 1.0}) is None


def test_the_sign_is_of_the_difference_and_the_test_is_two_sided() -> None:
    better = paired_test({0: 1.0, 1: 3.0}, {0: 0.0, 1: 0.0})
    worse = paired_test({0: -1.0, 1: -3.0}, {0: 0.0, 1: 0.0})
    assert better is not None
    assert worse is not None
    assert (better.difference, worse.difference) == (2.0, -2.0)
    assert better.p == pytest.approx(worse.p, rel=1e-12)


@pytest.mark.parametrize(
    ("own", "baseline", "difference", "why_not"),
    [
        ({0: 0.5, 1: 0.7}, {0: 0.5, 1: 0.7}, 0.0, "equal"),
        ({0: 0.0, 1: 0.0}, {0: 0.0, 1: 0.0}, 0.0, "equal"),
        ({0: 0.3, 1: 0.8}, {0: 0.2, 1: 0.7}, 0.1, "same at every seed"),  # 0.3 - 0.2 and 0.8 - 0.7 differ by rounding
        ({0: 0.5}, {0: 0.25}, 0.25, "one seed"),
        ({0: math.nan, 1: 0.8}, {0: 0.2, 1: 0.7}, math.nan, "not finite"),
    ],
)
def test_where_there_is_no_test_it_says_why(
    own: dict[int, float], baseline: dict[int, float], difference: float, why_not: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = paired_test(own, baseline)
    assert found is not None
    assert (found.p, found.why_not) == (None, why_not)
    assert found.difference == pytest.approx(difference, abs=1e-12, nan_ok=True)


def test_what_few_seeds_can_find() -> None:
    # The p quantile for two degrees of freedom: a sqrt(2 / (1 - a^2)) with a = 2p - 1.
    assert least_difference(3) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)) / math.sqrt(3), rel=1e-9)
    assert least_difference(2, 0.1) == pytest.approx(math.tan(0.45 * math.pi) / math.sqrt(2), rel=1e-9)
