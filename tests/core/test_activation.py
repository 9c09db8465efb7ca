import pytest

from lit_fed.core.activation import (
    Activation,
    Fixed,
    Plateau,
    activated,
    mean_over_examples,
    next_active,
    trained,
)


def watch(accuracies, schedule, start, groups, window=3):
    """The number of active groups after each round."""
    now, found = Activation(start), []
    for accuracy in accuracies:
        now = next_active(now.seen(accuracy, window), schedule, groups)
        found.append(now.active)
    return found


def test_a_plateau_fires_once_a_window_until_all_are_active():
    found = watch([0.5] * 12, Plateau(3, 0.005, 100), 1, 4)
    assert found == [1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 4]  # the queue is cleared, and fills in three rounds


def test_a_plateau_is_a_range_smaller_than_eps():
    # windows (0.1, 0.2, 0.3), (0.2, 0.3, 0.304), (0.3, 0.304, 0.301): ranges 0.2, 0.104, 0.004
    assert watch([0.1, 0.2, 0.3, 0.304, 0.301], Plateau(3, 0.005, 100), 1, 2) == [1, 1, 1, 1, 2]
    assert watch([0.25, 0.5, 0.25], Plateau(3, 0.25, 100), 1, 2) == [1, 1, 1]  # a range of eps is none


def test_patience_ends_without_a_plateau():
    rising = [0.1 * i for i in range(10)]
    assert watch(rising, Plateau(3, 0.005, 4), 1, 3) == [1, 1, 1, 2, 2, 2, 2, 3, 3, 3]


def test_a_round_without_an_accuracy_counts_for_patience_alone():
    assert watch([0.5, None, 0.5, None, 0.5], Plateau(3, 0.005, 100), 1, 2) == [1, 1, 1, 1, 2]
    assert watch([None] * 4, Plateau(3, 0.005, 2), 1, 9) == [1, 2, 2, 3]


def test_a_fixed_schedule_counts_rounds():
    assert watch([None] * 7, Fixed(2), 3, 5) == [3, 4, 4, 5, 5, 5, 5]


def test_it_goes_through_json_values():
    now = Activation(2).seen(0.1, 2).seen(0.2, 2).seen(1 / 3, 2)
    assert now.values() == {"active": 2, "rounds": 3, "recent": [0.2, 1 / 3]}
    assert Activation.of(now.values()) == now


def test_accuracy_is_weighted_by_examples():
    assert mean_over_examples([(1.0, 30), (0.0, 10)]) == 0.75
    assert mean_over_examples([(0.5, 0)]) is None
    assert mean_over_examples([]) is None


def test_blocks_are_activated_from_the_last_to_the_first():
    assert [activated(n, 1, 4) for n in range(5)] == [(), (3,), (2, 3), (1, 2, 3), (0, 1, 2, 3)]
    assert [activated(n, 1, 3, "first_last") for n in (1, 2)] == [(0,), (0, 1)]
    assert [activated(n, 2, 5) for n in (1, 2, 3)] == [(3, 4), (1, 2, 3, 4), (0, 1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("active", "size", "cap", "window", "order", "expected"),
    [
        (3, 1, 6, None, "last_first", (3, 4, 5)),
        (3, 1, 2, None, "last_first", (4, 5)),  # the top of what is active
        (1, 1, 4, None, "last_first", (5,)),
        (4, 1, 6, 2, "last_first", (2, 3)),  # the newest two
        (1, 1, 6, 2, "last_first", (5,)),
        (4, 1, 3, 2, "last_first", (3, 4)),  # the newest two of the three it can reach
        (2, 2, 6, 1, "last_first", (2, 3)),
        (2, 2, 3, 1, "last_first", (3,)),  # its second group is cut off by its cap
        (2, 1, 6, None, "first_last", (0, 1)),
        (3, 1, 6, 1, "first_last", (2,)),
    ],
)
def test_what_a_client_trains(active, size, cap, window, order, expected):
    assert trained(active, size, 6, cap, window, order) == expected
