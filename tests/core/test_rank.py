"""Lower ranks: what is cut, what is padded, and what is no product of factors."""

import pytest
import torch

from lit_fed.core.errors import ConfigError
from lit_fed.core.names import delta_of, is_delta, layer_of
from lit_fed.core.rank import check_pairs, pad, pairs, rank_of, truncate


def linear(rank, layer="blocks.0.q"):
    """m = 2, n = 3; row j of A holds j + 1, column j of B holds -(j + 1)."""
    steps = torch.arange(1.0, rank + 1)
    return {f"{layer}.lora_A": steps[:, None].expand(rank, 3), f"{layer}.lora_B": -steps.expand(2, rank)}


def conv(rank):
    return {"other.p.lora_A": torch.ones(rank, 3, 4, 4), "other.p.lora_B": torch.ones(5, rank, 1, 1)}


FULL = {**linear(4), **linear(2, "blocks.1.q"), **conv(4), "head.weight": torch.ones(7)}


def test_the_first_components_are_kept():
    cut = truncate(FULL, 3)
    assert cut["blocks.0.q.lora_A"].tolist() == [[1.0] * 3, [2.0] * 3, [3.0] * 3]
    assert cut["blocks.0.q.lora_B"].tolist() == [[-1.0, -2.0, -3.0]] * 2
    assert cut["blocks.1.q.lora_A"].shape == (2, 3)  # a layer that has fewer
    assert cut["other.p.lora_A"].shape == (3, 3, 4, 4)
    assert cut["other.p.lora_B"].shape == (5, 3, 1, 1)
    assert cut["head.weight"] is FULL["head.weight"]


def test_padding_adds_components_of_zero():
    padded = pad(truncate(FULL, 1), FULL)
    assert {name: tensor.shape for name, tensor in padded.items()} == {name: t.shape for name, t in FULL.items()}
    assert padded["blocks.0.q.lora_A"].tolist() == [[1.0] * 3, [0.0] * 3, [0.0] * 3, [0.0] * 3]
    assert padded["blocks.0.q.lora_B"].tolist() == [[-1.0, 0.0, 0.0, 0.0]] * 2
    assert padded["other.p.lora_A"].sum() == 3 * 16
    assert padded["other.p.lora_B"].sum() == 5


def test_at_full_rank_nothing_happens():
    there_and_back = pad(truncate(FULL, 4), FULL)
    assert all(torch.equal(there_and_back[name], tensor) for name, tensor in FULL.items())


def test_pairs_and_rank():
    assert list(pairs(FULL)) == ["blocks.0.q", "blocks.1.q", "other.p"]
    assert pairs(FULL)["blocks.1.q"][0] is FULL["blocks.1.q.lora_A"]
    assert (rank_of(FULL), rank_of({"head.weight": torch.ones(1)})) == (4, 0)
    check_pairs(FULL, 4)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((4, 1, 3, 3), (6, 2, 1, 1)),  # a convolution in two groups
        ((8, 3), (2, 8)),  # two experts of rank 4
        ((4, 3, 3, 3), (6, 4, 3, 3)),
    ],
)
def test_what_is_no_product_is_refused(a, b):
    odd = {"blocks.3.x.lora_A": torch.ones(a), "blocks.3.x.lora_B": torch.ones(b)}
    with pytest.raises(ConfigError, match=r"\['blocks\.3\.x'\].*`lora\.target_modules`"):
        check_pairs({**linear(4), **odd}, 4)


def test_names_of_deltas():
    assert layer_of("blocks.0.q.lora_A") == "blocks.0.q"
    assert delta_of("blocks.0.q") == "blocks.0.q.delta"
    assert is_delta("blocks.0.q.delta")
    assert not is_delta("blocks.0.delta.lora_A")
