"""Frozen linear layers under bfloat16 autocast: weights cast once, and an input once for all layers that read it.

Autocast casts a frozen weight in every step (only what is trained stays in its cache), and an input once for each layer
that it enters: queries, keys and values cast the same hidden states three times, and three gradients back. Here a layer
keeps a copy of its weight in bfloat16 for as long as the weight stays what it is. The weight itself is not touched, so
whatever reads it (a checkpoint, an export, a delta that is folded in, a step without autocast) finds it in full.

A forward pass is that of autocast, to the bit. In the backward pass the gradients of layers that share an input are
added up in bfloat16, where autocast adds them in float32.
"""

import weakref
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

__all__ = ["CastOnce", "FrozenCopy", "lean_linear", "under_bf16_autocast"]


def under_bf16_autocast(x: Tensor) -> bool:
    """Whether matrix products of a tensor run in bfloat16 now, on a CPU."""
    on = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return on and torch.get_autocast_dtype("cpu") == torch.bfloat16


class CastOnce:
    """The last tensor that was cast to bfloat16, as long as it is there and unchanged."""

    def __init__(self) -> None:
        self._known: tuple[weakref.ref[Tensor], int, bool, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """The tensor in bfloat16; gradients flow through the cast."""
        if x.dtype == torch.bfloat16:
            return x
        if x.is_inference():  # which does not say whether it has changed
            return x.to(torch.bfloat16)
        version, grad = x._version, torch.is_grad_enabled()
        if self._known is not None:
            known, at, with_grad, cast = self._known
            if known() is x and at == version and with_grad == grad:
                return cast
        cast = x.to(torch.bfloat16)
        self._known = (weakref.ref(x, self._forget), version, grad, cast)
        return cast

    def _forget(self, gone: "weakref.ref[Tensor]") -> None:
        """Let go of the cast with what it was made of, or it would keep a step's graph in memory."""
        if self._known is not None and self._known[0] is gone:
            self._known = None


class FrozenCopy:
    """A linear layer's frozen weight and bias in bfloat16: themselves if they are, else copies made when they change.

    Args:
        layer: The layer.
        keep: Whether the copies stay in memory; else they are made whenever they are asked for.
    """

    def __init__(self, layer: nn.Linear, keep: bool = True) -> None:
        self._layer, self._keep = layer, keep
        self._copies: dict[str, tuple[tuple[int, int], Tensor]] = {}

    @property
    def is_frozen(self) -> bool:
        """Whether no gradient is asked of the layer's own tensors."""
        return not any(p.requires_grad for p in self._layer._parameters.values() if p is not None)

    @property
    def weight(self) -> Tensor:
        """Shape (out, in)."""
        return self._of("weight", self._layer.weight)

    @property
    def bias(self) -> Tensor | None:
        """Shape (out,), or `None`."""
        return None if self._layer.bias is None else self._of("bias", self._layer.bias)

    def _of(self, name: str, parameter: Tensor) -> Tensor:
        if parameter.dtype == torch.bfloat16 or not self._keep:
            return parameter.to(torch.bfloat16)
        state = (parameter.data_ptr(), parameter._version)
        known = self._copies.get(name)
        if known is None or known[0] != state:
            with torch.inference_mode(False):  # what is made in inference mode could not be trained through later
                known = self._copies[name] = (state, parameter.detach().to(torch.bfloat16))
        return known[1]


def lean_linear(layers: Iterable[nn.Linear], cast: CastOnce, keep: bool = True) -> Callable[[], None]:
    """Run linear layers so wherever they are frozen and run under bfloat16 autocast on a CPU.

    Args:
        layers: The layers.
        cast: Casts their inputs.
        keep: Whether weights in bfloat16 stay in memory, beside those in float32.

    Returns:
        What puts everything back.
    """
    changed = []
    for layer in layers:
        layer.__dict__["forward"] = partial(_forward, FrozenCopy(layer, keep), layer.forward, cast)
        changed.append(layer)

    def undo() -> None:
        for layer in changed:
            del layer.__dict__["forward"]

    return undo


def _forward(frozen: FrozenCopy, plain: Callable[[Tensor], Tensor], cast: CastOnce, x: Tensor) -> Tensor:
    if not (x.is_floating_point() and under_bf16_autocast(x) and frozen.is_frozen):
        return plain(x)
    return linear(cast(x), frozen.weight, frozen.bias)
