"""LoRA adapters of a lower rank: cut to it, and padded with zeros to the full one.

A LoRA layer of rank r has r components. Component j is row j of A, shape (r, n), and column j of B, shape (m, r); a
convolution has A of shape (r, in, height, width) and B of shape (m, r, 1, 1). What is no LoRA factor has no rank and
passes through all functions as it is.

A component whose row and column are both zero gets no gradient (each is the other's), so that SGD and Adam leave it
zero: training a padded adapter is training at the lower rank.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lit_fed.core.errors import ConfigError
from lit_fed.core.names import factor_of, layer_of
from lit_fed.core.types import AdapterState

Factors = tuple[Tensor, Tensor]
"""A and B of one layer."""


def pairs(adapter: AdapterState) -> dict[str, Factors]:
    """Layer -> its A and B."""
    a = {layer_of(name): tensor for name, tensor in adapter.items() if factor_of(name) == "A"}
    b = {layer_of(name): tensor for name, tensor in adapter.items() if factor_of(name) == "B"}
    return {layer: (a[layer], b[layer]) for layer in sorted(a.keys() & b.keys())}


def check_pairs(adapter: AdapterState, rank: int) -> None:
    """Raise `ConfigError` if the product of a layer's factors is not what LoRA adds to its weight.

    Args:
        adapter: The module's adapter.
        rank: Its LoRA rank, the largest if layers differ.
    """
    odd = [layer for layer, (a, b) in pairs(adapter).items() if not _is_product(a, b, rank)]
    if odd:
        raise ConfigError(
            f"Expected LoRA on layers whose update is the product BA, but got {odd[:3]}, which are convolutions in "
            "groups or the weights of several experts. Leave them out of `lora.target_modules`, or use FedAvg."
        )


def _is_product(a: Tensor, b: Tensor, rank: int) -> bool:
    return a.shape[0] == b.shape[1] <= rank and b[0, 0].numel() == 1


def rank_of(adapter: AdapterState) -> int:
    """The rank of an adapter, the largest if layers differ; 0 without LoRA."""
    return max((a.shape[0] for a, _ in pairs(adapter).values()), default=0)


def truncate(adapter: AdapterState, rank: int) -> dict[str, Tensor]:
    """The first `rank` components of every layer; a layer that has fewer keeps all of them."""
    return {name: _cut(tensor, factor_of(name), rank) for name, tensor in adapter.items()}


def _cut(tensor: Tensor, factor: str | None, rank: int) -> Tensor:
    if factor is None:
        return tensor
    return (tensor[:rank] if factor == "A" else tensor[:, :rank]).contiguous()


def pad(adapter: AdapterState, full: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add components of zero to every layer, up to the shapes of another adapter with (at least) the same names."""
    return {name: _filled(tensor, full[name]) if factor_of(name) else tensor for name, tensor in adapter.items()}


def _filled(tensor: Tensor, full: Tensor) -> Tensor:
    if tensor.shape == full.shape:
        return tensor
    padded = torch.zeros_like(full)
    padded[tuple(slice(size) for size in tensor.shape)] = tensor
    return padded
