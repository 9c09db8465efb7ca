"""Numbers of the server, whatever an algorithm calls them."""

import numpy as np
import pytest

from lit_fed.pictures.server import draw_server, server_numbers


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
