r"""Attention in bfloat16 as batched matrix products, for CPUs, where PyTorch's fused kernel is slow in it.

With q (h, n, d), k and v (h, m, d), h heads times rows of the batch, and a mask M that is added,

.. math:: P = \mathrm{softmax}(s\, q k^T + M), \qquad o = P v,

and backward, with g the gradient of o,

.. math:: \partial v = P^T g, \quad D = P \circ (g v^T - \mathrm{rowsum}(P \circ g v^T)), \quad
          \partial q = s\, D k, \quad \partial k = s\, D^T q.

Scores and weights are rounded to bfloat16 (softmax itself is computed in float32), as by Hugging Face's ``eager``; the
fused kernel keeps them in float32. They take n m values a head, where the fused kernel keeps n: for long sequences it
remains the better one, and above `LONGEST` positions it is used.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["LONGEST", "lean_attention"]

LONGEST = 512
"""Up to as many positions are attended to by matrix products."""

_LOWEST = torch.finfo(torch.bfloat16).min
_NAME = "lit_fed_lean"
_MORE = ("softcap", "position_bias", "cache", "s_aux")  # what some models ask for beside


class _Attention(torch.autograd.Function):
    """q (h, n, d), k (h, m, d), v (h, m, e), mask (h, n, m) or `None`, all in bfloat16 -> (h, n, e)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        scaled = q * scaling  # so that no product has a factor: with one, they take a slower kernel
        scores = torch.bmm(scaled, k.mT)
        if mask is not None:
            scores += mask
        weights = torch._softmax(scores, -1, False)
        ctx.save_for_backward(scaled, k, v, weights)
        ctx.scaling = scaling
        return torch.bmm(weights, v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled, k, v, weights = ctx.saved_tensors
        dv = torch.bmm(weights.mT, grad)
        ds = torch._softmax_backward_data(torch.bmm(grad, v.mT), weights, -1, weights.dtype)
        return torch.bmm(ds, k).mul_(ctx.scaling), torch.bmm(ds.mT, scaled), dv, None, None


def lean_attention(module: nn.Module) -> Callable[[], None]:
    """Have every Hugging Face model in a module, whose attention is ``sdpa``, attend so in bfloat16 on a CPU.

    In other types, elsewhere, with dropout or for longer sequences ``sdpa`` itself runs.

    Args:
        module: The module.

    Returns:
        What puts everything back.
    """
    changed = []
    for child in module.modules():
        config = getattr(child, "config", None)
        functional = getattr(child, "_can_set_attn_implementation", None)
        if getattr(config, "_attn_implementation", None) == "sdpa" and callable(functional) and functional():
            _register()
            config._attn_implementation_internal = _NAME  # type: ignore[union-attr]  # of this one, not of what is in it
            changed.append(config)

    def undo() -> None:
        for config in changed:
            config._attn_implementation_internal = "sdpa"  # type: ignore[union-attr]

    return undo


def _register() -> None:
    """Tell Hugging Face of it; masks are made as for ``sdpa``."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
) -> tuple[Tensor, Tensor | None]:
    """Queries (B, H, n, d), keys and values (B, H or fewer, m, d) -> (B, n, H, d), and no weights."""
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    learned = attention_mask is not None and attention_mask.requires_grad
    if learned or not _is_plain(query, key, value, given):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **given)
    (rows, heads, length, width), longest = query.shape, key.shape[2]
    causal = given.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if attention_mask is None and causal and length > 1:
        attention_mask = torch.ones(length, longest, dtype=torch.bool).tril()
    key, value = (repeat_kv(x, heads // x.shape[1]) for x in (key, value))  # where heads share them
    scaling = given.get("scaling")
    attended = _Attention.apply(
        *(x.reshape(rows * heads, -1, x.shape[-1]) for x in (query, key, value)),
        None if attention_mask is None else _added(attention_mask, (rows, heads, length, longest)),
        float(width**-0.5 if scaling is None else scaling),
    )
    return attended.view(rows, heads, length, -1).transpose(1, 2).contiguous(), None


def _is_plain(query: Tensor, key: Tensor, value: Tensor, given: dict[str, Any]) -> bool:
    """Whether all that is asked for is queries, keys and values, a mask and a scaling."""
    here = query.device.type == "cpu" and query.dtype == key.dtype == value.dtype == torch.bfloat16
    more = any(given.get(name) is not None for name in _MORE) or isinstance(given.get("scaling"), Tensor)
    return (
        here and not (more or given.get("dropout")) and query.shape[1] % key.shape[1] == 0 and key.shape[2] <= LONGEST
    )


def _added(mask: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """A mask, of booleans that say who is seen or of numbers to be added, as numbers (B * H, n, m) to be added."""
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill_(~mask, _LOWEST)
    # float32 has lower numbers than bfloat16, which would be minus infinity in it
    return mask.clamp(min=_LOWEST).to(torch.bfloat16).expand(shape).reshape(-1, *shape[2:])
