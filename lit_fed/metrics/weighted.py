"""Means that stay exact when they are merged: ``(sum, count)`` pairs, divided only when they are shown."""

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["Pairs", "WeightedMean", "as_pairs", "means", "merge"]

Pairs: TypeAlias = Mapping[str, tuple[float, float]]
"""Name -> (weighted sum, sum of weights)."""


class WeightedMean:
    """Running weighted sums under names. Tensors stay on their device; nothing waits for them before `pairs`.

    A mean of batch means is not the mean over examples when batches differ in size: weigh each batch by its examples.

    Example::

        mean = WeightedMean()
        mean.update("loss", loss, weight=len(batch))
        mean.means()["loss"]
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor | float, Tensor | float]] = {}

    def update(self, name: str, value: Tensor | float, weight: Tensor | float = 1.0) -> None:
        """Add a value with a weight, both scalars (number or 0-d tensor).

        A tensor is summed in float64 where the device has it; without a gradient, and without waiting for the device.
        """
        value, weight = _wide(value), _wide(weight)
        total, count = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = (total + value * weight, count + weight)

    def pairs(self) -> dict[str, tuple[float, float]]:
        """The sums and counts as numbers. This waits for the device."""
        return {name: (float(total), float(count)) for name, (total, count) in self._sums.items()}

    def means(self) -> dict[str, float]:
        """The means as numbers. This waits for the device; a name whose weights sum to zero gives NaN."""
        return means(self.pairs())

    def reset(self) -> None:
        """Forget everything."""
        self._sums.clear()


def merge(parts: Iterable[Pairs]) -> dict[str, tuple[float, float]]:
    """Add up the pairs of several clients or domains, name by name; a part may lack names.

    Sums run in the order given: sort by client id for a result that does not depend on the order of arrival.
    """
    merged: dict[str, tuple[float, float]] = {}
    for part in parts:
        for name, (total, count) in part.items():
            old_total, old_count = merged.get(name, (0.0, 0.0))
            merged[name] = (old_total + total, old_count + count)
    return merged


def means(pairs: Pairs) -> dict[str, float]:
    """Divide: the mean under each name; NaN where the weights sum to zero."""
    return {name: total / count if count else float("nan") for name, (total, count) in pairs.items()}


def as_pairs(values: Mapping[str, float], count: float) -> dict[str, tuple[float, float]]:
    """The inverse of `means` for values that are all means over the same `count` examples."""
    return {name: (value * count, float(count)) for name, value in values.items()}


def _wide(value: Tensor | float) -> Tensor | float:
    if not isinstance(value, Tensor):
        return float(value)
    has_float64 = value.device.type != "mps"
    return value.detach().to(torch.float64 if has_float64 else torch.float32)
