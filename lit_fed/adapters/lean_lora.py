r"""LoRA on a frozen linear layer, as one function with the fewest products.

With x of shape (n, d_in), the frozen W (d_out, d_in) and b, and the factors A (r, d_in) and B (d_out, r), forward is

.. math:: u = x A^T, \qquad y = x W^T + b + s\, u B^T,

and backward, with g the gradient of y,

.. math:: v = s\, g B, \quad \partial x = g W + v A, \quad \partial A = v^T x, \quad \partial B = s\, g^T u.

The low-rank products are added in place, and those with few columns, v and the gradient of B, computed with few rows
instead: BLAS is several times as fast then where layers are narrow. Under bfloat16 autocast all products run in
bfloat16; A, B and their gradients are float32. PEFT's own forward scales and adds on tensors of full size, in three
times as many operations, and under autocast casts x to float32 and back.

Assumption: what PEFT rounds three times (the product with B, its scaling, the sum) may be rounded once.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from lit_fed.adapters.lean_linear import CastOnce, FrozenCopy, under_bf16_autocast

__all__ = ["few_columns", "lean_lora"]

_FLOAT32 = {torch.float32}


def few_columns(x: Tensor, low: Tensor) -> Tensor:
    """``x @ low`` (..., n, r) for a small r."""
    return (low.mT @ x.mT).mT if x.dtype is torch.float32 and x.device.type == "cpu" else x @ low


class _LoraLinear(torch.autograd.Function):
    """x (..., d_in) and W in one type, A and B in any -> y (..., d_out) in that of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low_a, low_b = a.to(x.dtype), b.to(x.dtype)
        u = rows @ low_a.T
        y = linear(rows, w, bias)
        y.addmm_(u, low_b.T, alpha=scaling)
        _, _, _, for_a, for_b, _ = ctx.needs_input_grad
        ctx.save_for_backward(rows if for_a else None, w, low_a, low_b, u if for_b else None)
        ctx.shape, ctx.scaling, ctx.dtypes = x.shape, scaling, (a.dtype, b.dtype)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, w, low_a, low_b, u = ctx.saved_tensors
        g = grad.reshape(-1, grad.shape[-1])
        for_x, _, _, for_a, for_b, _ = ctx.needs_input_grad
        v = few_columns(g, low_b).mul_(ctx.scaling) if for_x or for_a else None
        dx = (g @ w).addmm_(v, low_a).view(ctx.shape) if for_x else None
        da = (v.T @ rows).to(ctx.dtypes[0]) if v is not None and for_a else None
        db = few_columns(g.T, u).to(ctx.dtypes[1]).mul_(ctx.scaling) if for_b else None
        return dx, None, None, da, db, None


def lean_lora(layers: Mapping[str, Any], cast: CastOnce, keep: bool = True) -> Callable[[], None]:
    """Run layers with LoRA so on a CPU, wherever it is the plain product of one adapter, in float32 or under autocast.

    What is none (dropout, variants such as DoRA, several adapters at once, a layer that is not linear or not frozen)
    stays PEFT's.

    Args:
        layers: Canonical name -> PEFT's layer.
        cast: Casts their inputs.
        keep: Whether weights in bfloat16 stay in memory, beside those in float32.

    Returns:
        What puts everything back.
    """
    changed = []
    for layer in layers.values():
        base = layer.get_base_layer()
        if type(base) is nn.Linear and not getattr(layer, "fan_in_fan_out", False):
            layer.__dict__["forward"] = partial(_forward, layer, FrozenCopy(base, keep), layer.forward, cast)
            changed.append(layer)

    def undo() -> None:
        for layer in changed:
            del layer.__dict__["forward"]

    return undo


def _forward(
    layer: Any, frozen: FrozenCopy, plain: Callable[..., Tensor], cast: CastOnce, x: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    adapter = _plain_adapter(layer)
    if adapter is None or args or kwargs or not frozen.is_frozen:
        return plain(x, *args, **kwargs)
    a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    y: Tensor
    if under_bf16_autocast(x):
        y = _LoraLinear.apply(cast(x), frozen.weight, frozen.bias, a, b, layer.scaling[adapter])
    elif _in_float32(x, a, b, base := layer.get_base_layer()):
        y = _LoraLinear.apply(x, base.weight, base.bias, a, b, layer.scaling[adapter])
    else:
        y = plain(x)
    return y


def _in_float32(x: Tensor, a: Tensor, b: Tensor, base: nn.Linear) -> bool:
    """Whether all of it is computed in float32, on a CPU."""
    everything = (x, a, b, *(p for p in base._parameters.values() if p is not None))
    return x.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and {t.dtype for t in everything} == _FLOAT32


def _plain_adapter(layer: Any) -> str | None:
    """The adapter whose product is all that the layer adds, if so it is."""
    active = layer.active_adapters
    if layer.disable_adapters or layer.merged or len(active) != 1:
        return None
    (adapter,) = active
    if adapter not in layer.lora_A or adapter in layer.lora_variant or layer.lora_B[adapter].bias is not None:
        return None
    dropout = layer.lora_dropout[adapter]
    drops = dropout.training and getattr(dropout, "p", 0.0) > 0
    return None if drops or isinstance(layer.scaling[adapter], Tensor) else str(adapter)
