"""Scores over rounds: what the tables say, where it belongs, and names that do not lie upon one another."""

from typing import Any

import numpy as np
import pytest

from lit_fed.pictures.scores import Scores, draw_scores, room_between, scores
from tests.pictures.seen import apart, texts, ticks

INITIAL = {"global/accuracy": 0.25, "global/accuracy/x": 0.5, "global/accuracy/y": 0.0, "global/loss": 2.0}
ROWS: list[dict[str, Any]] = [
    {"round": 0, "train/loss": 1.0},
    {"round": 1, "global/accuracy": 0.5, "global/accuracy/x": 0.625, "global/accuracy/y": 0.375, "global/loss": 1.0},
    {"round": 2, "global/accuracy": 0.75, "global/accuracy/x": 0.75, "personal/accuracy_mean": 0.8,
     "personal/accuracy_std": 0.1, "personal/accuracy_worst": 0.7},
]  # fmt: skip


def made(num_domains: int, num_evaluations: int = 5) -> Scores:
    """Lines that end close to one another."""
    rounds = np.arange(num_evaluations) * 3
    domains = {f"domain {i}": np.linspace(0.1, 0.8 + 0.001 * i, num_evaluations) for i in range(num_domains)}
    overall = np.linspace(0.1, 0.8, num_evaluations)
    return Scores("accuracy", rounds, overall, domains, {"mean": overall, "worst": overall - 0.01})


def test_rows_of_evaluated_rounds_after_the_initial_scores() -> None:
    found = scores("accuracy", ROWS, INITIAL)
    assert found is not None
    assert found.rounds.tolist() == [0, 2, 3]  # rounds finished
    assert found.overall.tolist() == [0.25, 0.5, 0.75]
    assert list(found.domains) == ["x", "y"]
    assert found.domains["x"].tolist() == [0.5, 0.625, 0.75]
    np.testing.assert_array_equal(found.domains["y"], [0.0, 0.375, np.nan])
    np.testing.assert_array_equal(found.personal["mean"], [np.nan, np.nan, 0.8])
    np.testing.assert_array_equal(found.personal["worst"], [np.nan, np.nan, 0.7])


def test_only_the_metric_asked_for() -> None:
    found = scores("loss", ROWS, INITIAL)
    assert found is not None
    assert (found.rounds.tolist(), found.overall.tolist()) == ([0, 2], [2.0, 1.0])
    assert (found.domains, found.personal) == ({}, {})


def test_without_an_evaluation_there_is_nothing() -> None:
    assert scores("accuracy", ROWS[:1], {}) is None
    assert scores("loss", [{"round": 0, "global/loss": float("nan")}], {}) is None


def test_lines_are_the_scores() -> None:
    found = scores("accuracy", ROWS, INITIAL)
    assert found is not None
    left, right = draw_scores(found).axes
    lines = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in left.lines]
    assert lines == [([0, 2, 3], [0.5, 0.625, 0.75]), ([0, 2], [0.0, 0.375]), ([0, 2, 3], [0.25, 0.5, 0.75])]
    assert [text.get_text() for text in left.texts] == ["x 0.750", "y 0.375", "all domains 0.750"]
    assert [text.get_text() for text in right.texts] == ["mean of clients 0.800", "worst of clients 0.700"]
    assert (left.get_xlabel(), left.get_ylabel()) == ("rounds finished", "accuracy")


def test_a_single_domain_is_all_of_them() -> None:
    left = draw_scores(made(1)).axes[0]
    assert [text.get_text() for text in left.texts] == ["domain 0 0.800"]


def test_of_more_domains_than_can_be_told_apart_the_ends_are_named() -> None:
    left = draw_scores(made(13)).axes[0]
    assert len(left.lines) == 14
    assert [text.get_text() for text in left.texts] == ["domain 0 0.800", "domain 12 0.812", "all domains 0.800"]


@pytest.mark.parametrize(("num_domains", "num_evaluations"), [(1, 1), (2, 2), (6, 400), (12, 5), (40, 5)])
def test_names_lie_neither_upon_one_another_nor_upon_lines(num_domains: int, num_evaluations: int) -> None:
    figure = draw_scores(made(num_domains, num_evaluations))
    figure.draw_without_rendering()
    for axes in figure.axes:
        names = texts(axes)
        assert apart(names)
        assert all(box.x0 > axes.get_window_extent().x1 for box in names)  # beside the lines
        assert all(box.x1 <= figure.bbox.x1 for box in names)
        assert apart(ticks(axes.xaxis))
        assert all(tick.get_text().isdigit() for tick in axes.get_xticklabels() if tick.get_position()[0] >= 0)
    assert all(box.x1 < figure.axes[1].get_window_extent().x0 for box in texts(figure.axes[0]))


def test_dollars_are_dollars() -> None:
    line = np.array([0.1, 0.2])
    figure = draw_scores(Scores("loss", np.array([0, 1]), line, {"$a": line, r"b\frac$": line, "c": line}, {}))
    figure.draw_without_rendering()  # a formula that is none would raise


@pytest.mark.parametrize(
    ("wanted", "gap", "found"),
    [
        ([0.1, 0.5, 0.9], 0.1, [0.1, 0.5, 0.9]),
        ([0.5, 0.5], 0.1, [0.5, 0.6]),
        ([0.9, 0.2, 0.85], 0.1, [0.95, 0.2, 0.85]),
        ([1.0, 1.0, 1.0], 0.25, [0.5, 0.75, 1.0]),  # pushed down from the top
        ([-1.0, 3.0], 0.1, [0.0, 1.0]),  # within the limits
        ([0.5, 0.5, 0.5], 9.0, [0.0, 0.5, 1.0]),  # no room: as far apart as can be
        ([0.5], 9.0, [0.5]),
        ([], 1.0, []),
    ],
)
def test_room_between(wanted: list[float], gap: float, found: list[float]) -> None:
    assert room_between(wanted, gap, 0.0, 1.0) == pytest.approx(found)
