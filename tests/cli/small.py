"""Modules that commands choose by class path."""

from typing import Any

from torch import Tensor

from tests.engine.tiny import Net


class Predicting(Net):
    """Says what it thinks."""

    def predict_step(self, batch: Any, batch_idx: int = 0) -> dict[str, Tensor]:
        probs = self(batch[0]).softmax(-1)
        return {"probs": probs, "label": probs.argmax(-1)}


class Failing(Net):
    """Cannot be trained."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        raise ArithmeticError("the sums do not add up")


class Unbuildable(Net):
    """Cannot be built."""

    def __init__(self) -> None:
        raise RuntimeError
