"""What a round costs each client."""

from typing import Any

import pytest

from lit_fed.pictures.turns import draw_turns, turns
from tests.pictures.seen import apart, ticks


def row(client: str, up: int, down: int, seconds: float, round: int = 0) -> dict[str, Any]:
    return {"round": round, "client": client, "up_bytes": up, "down_bytes": down, "seconds": seconds}


ROWS = [
    row("b", 1000, 4000, 0.5),
    row("a", 2000, 5000, 1.0),
    row("b", 3000, 4000, 1.0, round=1),
    {"round": 1, "client": "a", "accuracy": 0.5},  # was evaluated, and had no turn
    {"round": 1, "client": "c", "accuracy": 0.5},
]


def many(clients: int) -> list[dict[str, Any]]:
    return [
        row(f"{client:03d}", 10**6 * (client + round + 1), 10**6, 0.1 * client + round, round)
        for client in range(clients)
        for round in range(3)
    ]


def test_least_mean_and_most_over_a_clients_own_rounds() -> None:
    found = turns(ROWS)
    assert found is not None
    assert found.clients == ("a", "b")
    assert {name: values.tolist() for name, values in found.measures.items()} == {
        "up_bytes": [[2000, 2000, 2000], [1000, 2000, 3000]],
        "down_bytes": [[5000, 5000, 5000], [4000, 4000, 4000]],
        "seconds": [[1.0, 1.0, 1.0], [0.5, 0.75, 1.0]],
    }
    assert turns(ROWS[3:]) is None


def test_few_clients_have_a_bar_and_a_name_each() -> None:
    found = turns(ROWS)
    assert found is not None
    up, down, seconds = draw_turns(found).axes
    assert [bar.get_width() for bar in up.patches] == [2, 2]
    assert [bar.get_width() for bar in down.patches] == [5, 4]
    assert [bar.get_width() for bar in seconds.patches] == [1.0, 0.75]
    assert [line[:, 0].tolist() for line in seconds.collections[0].get_segments()] == [[1.0, 1.0], [0.5, 1.0]]
    assert [tick.get_text() for tick in up.get_yticklabels()] == ["a", "b"]
    assert [axes.get_xlabel() for axes in (up, down, seconds)] == [
        "up, kB a round", "down, kB a round", "seconds a round",
    ]  # fmt: skip


def test_many_clients_are_sorted_and_the_ends_named() -> None:
    found = turns(many(99))
    assert found is not None
    up, _, _ = draw_turns(found).axes
    means = up.lines[0].get_ydata().tolist()
    assert means == [float(2 + client) for client in reversed(range(99))]  # of 1, 2 and 3 more than its number
    assert up.get_title(loc="left") == "most: 098 (100)\nleast: 000 (2)"
    assert up.get_ylabel() == "up, MB a round"


@pytest.mark.parametrize("clients", [1, 6, 40, 41, 99, 3000])
def test_no_text_lies_upon_another(clients: int) -> None:
    found = turns(many(clients))
    assert found is not None
    figure = draw_turns(found)
    figure.draw_without_rendering()
    assert apart(ticks(figure.axes[0].yaxis))
    assert apart([box for axes in figure.axes for box in ticks(axes.xaxis)])


def test_nobody_sends_anything() -> None:
    found = turns([row("a", 0, 0, 0.0)])
    assert found is not None
    up = draw_turns(found).axes[0]
    assert up.get_xlabel() == "up, bytes a round"
    assert up.get_xlim()[1] > 0
