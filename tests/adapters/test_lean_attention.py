"""Attention by matrix products is attention, wherever it runs; elsewhere it is the fused kernel."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lit_fed.adapters import lean_attention

BF16 = torch.bfloat16


class Attention(nn.Module):
    """What Hugging Face's functions ask of the layer that attends."""

    def __init__(self, causal: bool = False, groups: int = 1) -> None:
        super().__init__()
        self.is_causal, self.num_key_value_groups = causal, groups


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=random).to(BF16) for shape in shapes]


def by_hand(q: Tensor, k: Tensor, v: Tensor, added: Tensor, scaling: float) -> Tensor:
    """(B, H, n, d) -> (B, n, H, e), in float64."""
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) * scaling + added
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return torch.einsum("bhnm,bhme->bnhe", weights / weights.sum(-1, keepdim=True), v)


def close(a: Tensor, b: Tensor) -> bool:
    a, b = a.detach(), b.detach()
    return float((a.double() - b).norm()) <= 0.02 * float(b.norm())


NOBODY = -1e30
PADDED = torch.tensor([[True, True, True, True, False], [True] * 5]).view(2, 1, 1, 5)
BIAS = torch.linspace(-2, 2, 25).to(BF16).view(1, 1, 5, 5)
CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()


@pytest.mark.parametrize(
    ("mask", "added", "causal", "groups"),
    [
        (None, torch.zeros(()), False, 1),
        (None, torch.zeros(5, 5).masked_fill(~CAUSAL, NOBODY), True, 1),
        (PADDED, torch.zeros(2, 1, 1, 5).masked_fill(~PADDED, NOBODY), False, 1),
        (CAUSAL & PADDED, torch.zeros(2, 1, 5, 5).masked_fill(~(CAUSAL & PADDED), NOBODY), True, 2),
        (BIAS, BIAS, False, 1),
    ],
    ids=["all", "causal", "padded", "shared keys", "bias"],
)
def test_it_is_attention_with_its_gradients(mask, added, causal, groups):
    heads = 4
    shapes = [(2, heads, 5, 6), (2, heads // groups, 5, 6), (2, heads // groups, 5, 6)]
    given = [x.requires_grad_() for x in drawn(*shapes)]
    found, weights = lean_attention._attend(Attention(causal, groups), *given, mask, scaling=0.3, dropout=0.0)
    assert weights is None
    exact = [x.detach().double().requires_grad_() for x in given]
    q, k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in exact)
    expected = by_hand(q, k, v, added.double(), 0.3)
    (grad,) = drawn(tuple(expected.shape))
    found.backward(grad)
    expected.backward(grad.double())
    assert close(found, expected)
    for x, y in zip(given, exact, strict=True):
        assert x.grad.dtype == BF16
        assert close(x.grad, y.grad)


@pytest.mark.parametrize(
    ("dtype", "mask", "given", "length"),
    [
        (torch.float32, None, {}, 5),
        (BF16, None, {"dropout": 0.5}, 5),
        (BF16, None, {}, lean_attention.LONGEST + 1),
        (BF16, torch.zeros(1, 1, 5, 5, dtype=BF16).requires_grad_(), {}, 5),
    ],
    ids=["float32", "dropout", "long", "learned mask"],
)
def test_what_it_is_not_made_for_is_the_fused_kernel_to_the_bit(dtype, mask, given, length):
    q, k, v = (x.to(dtype) for x in drawn(*[(1, 2, length, 4)] * 3))

    def out(function: Any) -> Tensor:
        torch.manual_seed(1)
        attended: Tensor = function(Attention(), q, k, v, mask, scaling=0.5, **given)[0]
        return attended

    assert torch.equal(out(lean_attention._attend), out(sdpa_attention_forward))


def test_it_takes_the_place_of_sdpa_alone(arch_named):
    arch = arch_named("vit")
    chosen, eager = arch.make(), arch.make()
    eager.set_attn_implementation("eager")
    undo = [lean_attention.lean_attention(model) for model in (chosen, eager)]
    assert {m.config._attn_implementation for m in chosen.modules() if hasattr(m, "config")} == {"lit_fed_lean"}
    assert eager.config._attn_implementation == "eager"
    for one in undo:
        one()
    assert chosen.config._attn_implementation == "sdpa"
    assert eager.config._attn_implementation == "eager"
