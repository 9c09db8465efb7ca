"""Means and perplexity as torchmetrics, exact over a data set however it is dealt into batches."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["Mean", "Perplexity"]


class Mean(Metric):
    """A weighted mean.

    torchmetrics' own `MeanMetric` looks for NaN, and so waits for the device, at every update; told not to, it (1.9)
    ignores the weights.
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: Tensor | float = 1.0) -> None:
        """Add values, each with its weight.

        Args:
            value: Any shape.
            weight: A number, or a tensor that broadcasts to that shape. NaN values stay NaN, whatever their weight.
        """
        weights = torch.broadcast_to(torch.as_tensor(weight, dtype=torch.float32, device=value.device), value.shape)
        self.total = self.total + (value.detach().float() * weights).sum()
        self.weight = self.weight + weights.sum()

    def compute(self) -> Tensor:
        """The mean so far; NaN without any weight."""
        return self.total / self.weight


class Perplexity(Mean):
    """The exponential of the mean loss a token: update it with mean losses in nats and the tokens they are over."""

    def compute(self) -> Tensor:
        """The perplexity so far."""
        return torch.exp(super().compute())
