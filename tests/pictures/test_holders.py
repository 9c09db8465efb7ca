"""Who held which block: counted by hand, and drawn as counted."""

from typing import Any

import numpy as np
import pytest

from lit_fed.pictures.canvas import MISSING
from lit_fed.pictures.holders import draw_holders, holders


def turn(round: int, client: str, blocks: int, allocation: str | None = None, **more: Any) -> dict[str, Any]:
    named = {} if allocation is None else {"allocation": allocation}
    return {"round": round, "client": client, "blocks": blocks, **named, **more}


ROWS = [
    turn(0, "a", 4),
    turn(0, "b", 2, "0 3"),
    turn(0, "c", 1, "3"),
    turn(1, "b", 2, "0 1"),
    turn(1, "c", 1, "1"),
    {"round": 1, "client": "a", "accuracy": 0.5},  # was evaluated, and had no turn
    turn(2, "a", 4, failure="OSError: the disk is gone"),
    turn(2, "c", 1, "2"),
]
COUNTS = [  # rounds to the right, blocks downwards
    [2, 1, 0],
    [1, 2, 0],
    [1, 0, 1],
    [3, 0, 0],
]


def test_holders_are_counted_by_block_and_round() -> None:
    counts = holders(ROWS, 4)
    assert counts is not None
    assert counts.tolist() == COUNTS


def test_blocks_that_were_never_held_count_if_the_model_is_known_to_have_them() -> None:
    prefix = [turn(0, "a", 2, "0 1"), turn(0, "b", 1, "0")]
    known, seen = holders(prefix, 3), holders(prefix)
    assert known is not None
    assert seen is not None
    assert known.tolist() == [[2], [1], [0]]
    assert seen.tolist() == [[2], [1]]


def test_a_client_may_hold_no_block() -> None:
    counts = holders([turn(0, "a", 0), turn(0, "b", 1, "1")], 2)
    assert counts is not None
    assert counts.tolist() == [[0], [1]]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [turn(0, "a", 4), turn(1, "a", 4)],  # everyone held everything
        [turn(0, "a", 2), turn(0, "b", 4)],  # written when the column did not exist
        [turn(0, "a", 2), turn(1, "a", 2, "0 3")],  # and continued when it did
    ],
)
def test_nothing_is_counted_where_nothing_is_known_or_all_is_held(rows: list[dict[str, Any]]) -> None:
    assert holders(rows, 4) is None


def test_the_heat_map_shows_the_counts_and_what_nobody_held() -> None:
    axes, beside, scale = draw_holders(np.array(COUNTS)).axes
    shown = axes.collections[0].get_array().reshape(4, 3)
    assert shown.filled(0).tolist() == COUNTS
    assert np.ma.getmaskarray(shown).tolist() == [[count == 0 for count in row] for row in COUNTS]
    assert [patch.get_facecolor() for patch in axes.get_legend().get_patches()] == [axes.get_facecolor()]
    assert axes.get_facecolor() not in axes.collections[0].get_facecolor().tolist()
    assert [bar.get_width() for bar in beside.patches] == [1, 1, 1, 2]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("round", "block")
    assert scale.get_ylabel().startswith("clients that")
    assert [text.get_text() for text in axes.texts] == [str(count) for row in COUNTS for count in row]


def test_without_gaps_there_is_nothing_beside_the_map() -> None:
    figure = draw_holders(np.array([[1, 2], [2, 1]]))
    assert len(figure.axes) == 2  # the map and its scale
    assert figure.axes[0].get_legend() is None


@pytest.mark.parametrize("most", [1, 2, 8, 9, 40])
def test_ticks_of_the_scale_are_whole(most: int) -> None:
    figure = draw_holders(np.array([[1, most]]))
    figure.draw_without_rendering()
    ticks = [tick.get_text() for tick in figure.axes[1].get_yticklabels() if tick.get_text()]
    assert ticks
    assert all(tick.isdigit() for tick in ticks)


def test_many_rounds_are_drawn_together_and_a_gap_is_a_gap_of_all_of_them() -> None:
    counts = np.ones((2, 700), dtype=int)  # three rounds a column: 233 columns, and one of a single round
    counts[0, :3] = 0
    counts[0, 4] = 0
    counts[1, 699] = 5
    axes, beside, _ = draw_holders(counts).axes
    shown = axes.collections[0].get_array().reshape(2, 234)
    assert np.argwhere(np.ma.getmaskarray(shown)).tolist() == [[0, 0]]
    assert shown[0, 1] == pytest.approx(2 / 3)
    assert shown[1, 233] == 5
    assert [bar.get_width() for bar in beside.patches] == [4, 0]
    assert axes.get_legend().get_texts()[0].get_text() == "held by nobody for 3 rounds"
    assert axes.get_xlim() == (-0.5, 699.5)


def test_the_colour_of_a_gap_is_no_shade_of_the_scale() -> None:
    from matplotlib.colors import to_rgb

    figure = draw_holders(np.array([[1, 2, 3, 4, 5, 6, 7, 8]]))
    figure.draw_without_rendering()
    shades = figure.axes[0].collections[0].get_facecolor()[:, :3]
    assert len(np.unique(shades, axis=0)) == 8  # each count its own
    assert np.abs(shades - to_rgb(MISSING)).max(axis=1).min() > 0.3
