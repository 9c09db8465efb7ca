"""A figure as a part of a page."""

import re

import numpy as np
from matplotlib.colors import to_hex

from lit_fed.pictures.active import draw_trainers
from lit_fed.pictures.canvas import COLOURS, ON_DARK, new_figure
from lit_fed.pictures.gate import draw_gate, gate_weights
from lit_fed.pictures.holders import draw_holders
from lit_fed.pictures.svg import VARIABLES, svg


def drawn(name: str = "some") -> str:
    figure = new_figure(3, 2)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "o-", color=COLOURS[0])
    axes.plot([0, 1], [1, 0], color="#123456")
    axes.text(0.5, 0.5, "on it", color=ON_DARK)
    return svg(figure, name, 'a "line"')


def test_it_is_one_element_without_a_size_of_its_own() -> None:
    text = drawn()
    assert text.startswith('<svg role="img" aria-label="a &quot;line&quot;" viewBox="0 0 216 144" style="fill: ')
    assert text.rstrip().endswith("</svg>")
    assert not re.search(r"<metadata|<style|<\?xml|http", text)


def test_the_same_figure_is_the_same_text_and_two_share_no_id() -> None:
    assert drawn() == drawn()
    one, other = (set(re.findall(r'id="([^"]+)"', drawn(name))) for name in ("some", "other"))
    assert one
    assert not one & other


def test_no_shade_of_a_scale_is_one_that_follows_the_page() -> None:
    """Else cells of one value would look unlike their neighbours, and unlike the scale beside them."""
    gate = gate_weights([{"round": 0, "client": "a", "turn/gate_local": 1.0}])
    assert gate is not None
    for figure in (draw_gate(gate), draw_holders(np.array([[1, 2]])), draw_trainers(np.array([[1, 2]]), {0: 1})):
        [cells] = figure.axes[0].collections
        assert not {to_hex(colour) for colour in cells.cmap(np.arange(256))} & VARIABLES.keys()


def test_colours_are_the_pages_where_it_has_them() -> None:
    text = drawn()
    assert f"stroke: var(--colour-0, {COLOURS[0].lower()})" in text
    assert "stroke: #123456" in text  # nobody's
    assert f"fill: {ON_DARK}" in text  # on a ground that stays as it is
    assert "fill: var(--paper, #ffffff)" in text
