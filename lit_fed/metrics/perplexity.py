"""Perplexity, exact over a data set."""

import torch
from torch import Tensor
from torchmetrics import MeanMetric

__all__ = ["Perplexity"]


class Perplexity(MeanMetric):
    """The exponential of the mean loss a token.

    Updated with a mean loss in nats and the number of tokens it is over; the mean is taken over all tokens before the
    exponential, so the result does not depend on how they were dealt into batches.
    """

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")  # a check for NaN would wait for the device at every update

    def compute(self) -> Tensor:
        """The perplexity so far."""
        return torch.exp(super().compute())
