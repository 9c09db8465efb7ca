"""Numbers of the server, whatever an algorithm calls them."""

import numpy as np
import pytest

from lit_fed.pictures.server import draw_server, server_numbers


def test_what_is_counted_has_no_ticks_between() -> None:
    found = {"stage": np.array([[0, 1, 2], [1, 1, 2]]), "drift": np.array([[0, 1, 2], [1, 1.5, 2]])}
    figure = draw_server(found)
    figure.draw_without_rendering()
    stage, drift = (axes.get_yticks() for axes in figure.axes)
    assert all(tick == round(tick) for tick in stage)
    assert any(tick != round(tick) for tick in drift)


def test_what_only_rounding_moves_is_a_line_in_the_middle() -> None:
    figure = draw_server({"accuracy": np.array([[0, 1], [0.25, 0.25 + 1e-9]]), "none": np.array([[0, 1], [0, 0]])})
    figure.draw_without_rendering()
    accuracy, none = figure.axes
    assert accuracy.get_ylim() == pytest.approx((0.225, 0.275))
    assert none.get_ylim() == pytest.approx((-0.1, 0.1))
    assert accuracy.yaxis.get_offset_text().get_text() == ""
    assert {"0.25"} <= {label.get_text() for label in accuracy.get_yticklabels()}


def test_columns_of_the_server_in_the_rounds_that_have_them() -> None:
    rows = [
        {"round": 0, "server/drift": 0.5, "train/loss": 1.0},
        {"round": 1, "server/drift": 0.25, "server/stage/2": 1},
        {"round": 2, "server/stage/2": 3},
    ]
    found = server_numbers(rows)
    assert {name: values.tolist() for name, values in found.items()} == {
        "drift": [[0, 1], [0.5, 0.25]],
        "stage/2": [[1, 2], [1, 3]],
    }
    assert server_numbers([{"round": 0, "train/loss": 1.0}]) == {}


@pytest.mark.parametrize(("numbers", "panels"), [(1, 1), (2, 2), (3, 3), (7, 7), (61, 60)])
def test_a_panel_for_each(numbers: int, panels: int) -> None:
    found = {f"n{i}": np.array([[0, 1, 2], [i, i + 1, i]]) for i in range(numbers)}
    figure = draw_server(found)
    figure.draw_without_rendering()
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == list(found)[:panels]
    assert all(axes.lines[0].get_ydata().tolist() == [i, i + 1, i] for i, axes in enumerate(shown))
    assert [axes.get_xlabel() for axes in shown][-min(3, panels) :] == ["round"] * min(3, panels)
    assert (figure.get_suptitle() != "") == (panels < numbers)
