"""Joint batches, and gradients that lie side by side."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lit_fed.core.seeding import RandomStream
from lit_fed.engine.group_turn import NotTogetherError
from lit_fed.engine.joint import Draws, JointLoader, join
from lit_fed.engine.optimizers import clip_norms_apart


def table(*values: float) -> dict[str, torch.Tensor]:
    return {"x": torch.tensor(values)}


def test_groups_are_of_equal_size():
    """The smaller batch is filled up with its first row."""
    joint = join([table(1, 2), table(3, 4, 5)], {})
    assert joint.whole["x"].tolist() == [1, 2, 1, 3, 4, 5]
    assert (joint.sizes, joint.rows, joint.num_rows) == ([2, 3], 3, 6)
    assert [part.tolist() for part in joint.parts(10 * joint.whole["x"])] == [[10, 20], [30, 40, 50]]


@pytest.mark.parametrize(
    ("batches", "reason"),
    [
        ([{"x": torch.zeros(2, 3)}, {"x": torch.zeros(2, 4)}], "unequal shapes"),
        ([{"x": torch.zeros(2)}, {"y": torch.zeros(2)}], "unequal shapes"),
        ([{"x": torch.zeros(2)}, {"x": torch.zeros(2).long()}], "unequal shapes"),
        ([(torch.zeros(2),), (torch.zeros(2),)], "no mappings of tensors"),
        ([{"x": torch.zeros(2), "text": ["a", "b"]}] * 2, "no mappings of tensors"),
        ([{"x": torch.zeros(2), "y": torch.zeros(3)}] * 2, "no mappings of tensors"),
    ],
)
def test_what_cannot_be_joined(batches, reason):
    with pytest.raises(NotTogetherError, match=reason):
        join(batches, {"x": 0, "attention_mask": 0})


def sentences(*rows: list[int], **more: torch.Tensor) -> dict[str, torch.Tensor]:
    ids = torch.tensor(rows)
    return {"ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros(len(rows)), **more}


def test_texts_are_padded_behind_what_they_have():
    """The mask is 0 there; a column that is not (B, T) stays as it is."""
    joint = join([sentences([5, 6]), sentences([7, 8, 9], [1, 2, 3])], {"ids": 4, "attention_mask": 0, "labels": -100})
    assert joint.whole["ids"].tolist() == [[5, 6, 4], [5, 6, 4], [7, 8, 9], [1, 2, 3]]
    assert joint.whole["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]]
    assert joint.whole["labels"].shape == (4,)
    assert joint.batches[0]["ids"].tolist() == [[5, 6]]  # its own stays as it is


@pytest.mark.parametrize("more", [{"position_ids": torch.ones(1, 2)}, {"pixels": torch.ones(1, 2)}])
def test_what_nobody_says_how_to_pad_is_not_padded(more):
    wide = {name: torch.ones(1, 3) for name in more}
    with pytest.raises(NotTogetherError, match="unequal shapes"):
        join([sentences([1, 2], **more), sentences([1, 2, 3], **wide)], {"ids": 0, "attention_mask": 0})


def draws(*values: float) -> Draws:
    loader = DataLoader(torch.tensor(values), 2, generator=torch.Generator())  # type: ignore[arg-type]
    return Draws(loader, RandomStream(0), lambda batch: {"x": batch})


def test_a_client_begins_anew_when_its_data_are_over():
    loader = JointLoader([draws(1, 2, 3), draws(4, 5, 6, 7, 8)], 4, {})
    assert len(loader) == 4
    found = [[batch["x"].tolist() for batch in joint.batches] for joint in loader]
    assert found == [[[1, 2], [4, 5]], [[3], [6, 7]], [[1, 2], [8]], [[3], [4, 5]]]
    assert [batch["x"].tolist() for batch in next(iter(loader)).batches] == [[1, 2], [6, 7]]  # and goes on


def test_norms_are_clipped_apart():
    random = torch.Generator().manual_seed(0)
    stacked = [nn.Parameter(torch.zeros(3, *shape)) for shape in ((4,), (2, 5))]
    frozen = nn.Parameter(torch.zeros(3, 2))
    for parameter in stacked:
        size = torch.tensor([0.01, 1.0, 100.0]).view(3, *[1] * (parameter.ndim - 1))
        parameter.grad = size * torch.randn(parameter.shape, generator=random)
    expected = []
    for k in range(3):
        own = [nn.Parameter(torch.zeros_like(parameter[k])) for parameter in stacked]
        for one, parameter in zip(own, stacked, strict=True):
            one.grad = parameter.grad[k].clone()
        nn.utils.clip_grad_norm_(own, 0.5)
        expected.append([one.grad for one in own])
    clip_norms_apart(torch.optim.SGD([*stacked, frozen], lr=0.1), 0.5)
    for k in range(3):
        for gradient, parameter in zip(expected[k], stacked, strict=True):
            torch.testing.assert_close(parameter.grad[k], gradient)
    assert frozen.grad is None
