"""What rounds cost, drawn."""

from lit_fed.pictures.costs import draw_costs
from tests.pictures.seen import apart, ticks


def test_bytes_in_a_unit_that_can_be_read_and_seconds() -> None:
    rows = [{"round": i, "up_bytes": 2e6 * i, "down_bytes": 4e6, "seconds": 0.5} for i in range(3)]
    figure = draw_costs(rows)
    assert figure is not None
    figure.draw_without_rendering()
    traffic, time = figure.axes
    assert traffic.get_ylabel() == "MB a round"
    lines = {line.get_label(): line.get_ydata().tolist() for line in traffic.lines}
    assert lines == {"down": [4, 4, 4], "up": [0, 2, 4]}
    assert time.lines[0].get_ydata().tolist() == [0.5] * 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["down", "up"]  # above, where no line can be
    assert all(apart(ticks(axis)) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis))


def test_rounds_that_cost_nothing_and_none_at_all() -> None:
    assert draw_costs([]) is None
    figure = draw_costs([{"round": 0, "up_bytes": 0, "down_bytes": 0, "seconds": 0.0}])
    assert figure is not None
    assert all(axes.get_ylim() == (0, 1) for axes in figure.axes)
