"""Adam and AdamW step in one kernel on a CPU, where nothing else was asked for."""

from typing import Any

import pytest
import torch

from lit_fed.engine.optimizers import _fuse


def make(kind: Any, **settings: Any) -> tuple[Any, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator).requires_grad_() for shape in ((3, 5), (5,), (8, 2))]
    return kind(tensors, lr=0.1, **settings), tensors


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_one_kernel_makes_the_step_of_the_plain_loop(kind: Any) -> None:
    (fused, one), (plain, other) = make(kind, weight_decay=0.01), make(kind, weight_decay=0.01, foreach=False)
    _fuse(fused)
    _fuse(plain)
    assert fused.param_groups[0]["fused"] is True
    assert not plain.param_groups[0]["fused"]  # somebody asked for the loop
    for step in range(4):
        for tensors in (one, other):
            for place, tensor in enumerate(tensors):
                tensor.grad = None if place == step else torch.full_like(tensor, 0.3 * (step + 1))
        fused.step()
        plain.step()
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.AdamW, {"fused": False}),
        (torch.optim.AdamW, {"foreach": True}),
        (torch.optim.AdamW, {"capturable": True}),
        (torch.optim.Adam, {"differentiable": True}),
        (torch.optim.SGD, {}),
    ],
)
def test_what_was_asked_for_stays(kind: Any, settings: dict[str, Any]) -> None:
    optimizer, _ = make(kind, **settings)
    before = dict(optimizer.param_groups[0])
    _fuse(optimizer)
    assert {key: value for key, value in optimizer.param_groups[0].items() if key != "params"} == {
        key: value for key, value in before.items() if key != "params"
    }
