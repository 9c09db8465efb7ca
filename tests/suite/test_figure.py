"""The picture of a comparison."""

from itertools import combinations
from pathlib import Path

import pytest

from lit_fed.pictures.canvas import COLOURS
from lit_fed.suite import Comparison
from tests.suite.runs import record


def comparison(settings: int = 1, experiments: int = 3, seeds: int = 3, name: str = "Method {}") -> Comparison:
    runs = [
        record(name.format(e), seed, 0.5 + 0.05 * e + 0.01 * seed, f"setting {s}")
        for s in range(settings)
        for e in range(experiments)
        for seed in range(seeds)
    ]
    return Comparison(runs, None, name.format(0))


def test_every_seed_the_mean_and_the_spread_are_there() -> None:
    axes = comparison().plot().axes[0]
    seeds = [
        collection.get_offsets()[:, 0].tolist() for collection in axes.collections if len(collection.get_offsets()) == 3
    ]
    assert seeds == [pytest.approx([0.5 + 0.05 * e, 0.51 + 0.05 * e, 0.52 + 0.05 * e]) for e in range(3)]
    points = [bar.lines[0].get_xydata()[0].tolist() for bar in axes.containers]
    assert points == [pytest.approx([0.51 + 0.05 * e, e]) for e in range(3)]
    spans = [bar.lines[2][0].get_segments()[0][:, 0].tolist() for bar in axes.containers]
    assert spans == [pytest.approx([0.50 + 0.05 * e, 0.52 + 0.05 * e]) for e in range(3)]  # standard deviation 0.01
    assert [text.get_text() for text in axes.get_yticklabels()] == ["Method 0", "Method 1", "Method 2"]
    assert axes.yaxis_inverted()  # the first is on top, as in the table


def test_the_baseline_stands_out() -> None:
    axes = comparison().plot().axes[0]
    colours = [bar.lines[0].get_color() for bar in axes.containers]
    assert colours == [COLOURS[-1], COLOURS[0], COLOURS[0]]
    (line,) = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert line.get_xdata()[0] == pytest.approx(0.51)


@pytest.mark.parametrize(
    ("settings", "experiments", "seeds", "name"),
    [
        (1, 1, 1, "A"),
        (1, 40, 3, "Method {}"),
        (2, 3, 5, "A name that is much too long to be read {}"),
        (4, 5, 2, "{}"),
        (7, 2, 1, "{}"),
    ],
)
def test_nothing_overlaps(settings: int, experiments: int, seeds: int, name: str) -> None:
    figure = comparison(settings, experiments, seeds, name).plot()
    figure.draw_without_rendering()
    assert len(figure.axes) == settings
    texts = [figure._supxlabel]
    for axes in figure.axes:
        low, high = axes.get_xlim()
        ticks = [label for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]  # those drawn
        texts += [axes._left_title, axes.xaxis.label, *ticks, *axes.get_yticklabels()]
    boxes = [text.get_window_extent() for text in texts if text.get_text() and text.get_visible()]
    assert boxes
    for one, other in combinations(boxes, 2):
        assert not one.overlaps(other)
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_an_experiment_that_a_setting_lacks_leaves_its_row_empty() -> None:
    runs = [record("A", 0, 0.5, "x"), record("B", 0, 0.6, "x"), record("B", 0, 0.7, "y")]
    first, second = Comparison(runs).plot().axes
    assert [bar.lines[0].get_ydata()[0] for bar in first.containers] == [0, 1]
    assert [bar.lines[0].get_ydata()[0] for bar in second.containers] == [1]


def test_it_is_written(tmp_path: Path) -> None:
    comparison().plot(tmp_path / "f.png")
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
