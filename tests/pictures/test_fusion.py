"""Weights of a fusion: read by hand, and drawn as read."""

import numpy as np

from lit_fed.pictures.fusion import draw_fusion, fusion_weights


def row(client: str, round: int, personal: float, shared: float) -> dict[str, object]:
    return {"round": round, "client": client, "turn/weight_personal": personal, "turn/weight_global": shared}


ROWS = [{"round": 0, "client": "b"}, row("b", 3, 1.0, 0.5), row("a", 3, -0.5, 1.5), row("b", 4, 0.25, 0.75)]


def test_the_last_fusion_of_each_client() -> None:
    found = fusion_weights(ROWS)
    assert found is not None
    assert found.clients == ("a", "b")
    assert {which: own.tolist() for which, own in found.weights.items()} == {
        "personal": [-0.5, 0.25],
        "global": [1.5, 0.75],
    }
    assert fusion_weights(ROWS[:1]) is None


def test_a_row_for_each_client_and_a_mark_for_each_weight() -> None:
    found = fusion_weights(ROWS)
    assert found is not None
    figure = draw_fusion(found)
    [axes] = figure.axes
    marks = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert marks["personal LoRA"].get_xdata().tolist() == [-0.5, 0.25]
    assert marks["global LoRA"].get_xdata().tolist() == [1.5, 0.75]
    above, below = (marks[f"{which} LoRA"].get_ydata() for which in ("personal", "global"))
    assert (np.abs([above - [0, 1], below - [0, 1]]) < 0.5).all()  # in the client's row
    assert (above != below).all()  # equal weights hide nothing
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert "weight" in axes.get_xlabel()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["personal LoRA", "global LoRA"]


def test_of_many_clients_how_many_have_which_weights() -> None:
    found = fusion_weights([row(f"{i:02}", 3, 1.0, 0.5) for i in range(40)] + [row("40", 3, 0.0, 1.0)])
    assert found is not None
    [axes] = draw_fusion(found).axes
    assert axes.collections[0].get_offsets().tolist() == [[1.0, 0.0], [0.5, 1.0]]  # global to the right
    assert [text.get_text() for text in axes.texts] == ["40"]
    assert "41 clients" in axes.get_xlabel()
    assert axes.get_ylabel() == "weight of the personal LoRA"
