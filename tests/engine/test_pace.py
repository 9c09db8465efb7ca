"""Who takes long is dealt as such; what is not known is taken to be usual."""

import pytest

from lit_fed.core.sampling import deal
from lit_fed.engine.pace import Pace


def test_before_anything_is_measured_expected_costs_count() -> None:
    assert Pace().costs({"a": 3.0, "b": 1.0}) == {"a": 3.0, "b": 1.0}


def test_rates_are_seconds_a_unit_and_halve_with_every_turn() -> None:
    pace = Pace()
    pace.note({"a": 6.0, "b": 1.0}, {"a": 3.0, "b": 1.0})  # 2 and 1 seconds a unit
    assert pace.costs({"a": 4.0, "b": 4.0, "new": 4.0}) == {"a": 8.0, "b": 4.0, "new": 6.0}  # the mean is 1.5
    pace.note({"a": 4.0}, {"a": 1.0})  # (2 + 4) / 2
    assert pace.costs({"a": 1.0, "new": 1.0}) == pytest.approx({"a": 3.0, "new": 2.0})


def test_the_slow_client_has_a_process_to_itself() -> None:
    """By what is expected, four equal clients are two and two; one takes as long as the others together."""
    expected = dict.fromkeys("abcd", 1.0)
    pace = Pace()
    assert pace.deal(expected, 2) == [["a", "c"], ["b", "d"]]
    pace.note({"a": 1.0, "b": 1.0, "c": 1.0, "d": 3.0}, expected)
    assert pace.deal(expected, 2) == [["d"], ["a", "b", "c"]]


def test_for_a_few_percent_nobody_is_sent_elsewhere() -> None:
    """5.6 units in all, 3 of them with b and d; a deal by measured costs has 2.8 for the busiest, 7 % less."""
    expected = dict.fromkeys("abcd", 1.0)
    pace = Pace()
    pace.note({"a": 1.2, "b": 1.4, "c": 1.4, "d": 1.6}, expected)
    assert pace.deal(expected, 2) == [["a", "c"], ["b", "d"]]
    assert deal(pace.costs(expected), 2) == [["d", "a"], ["b", "c"]]
