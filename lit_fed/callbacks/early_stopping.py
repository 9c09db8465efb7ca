"""Stop a federation whose metric no longer improves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from lit_fed.callbacks.base import Callback
from lit_fed.core.errors import ConfigError
from lit_fed.core.types import Tree

if TYPE_CHECKING:
    from lit_fed.engine.federation import Federation


class EarlyStopping(Callback):
    """End the run when `monitor` has not improved for `patience` evaluations.

    Args:
        monitor: A metric of an evaluation, such as ``global/accuracy`` or ``personal/accuracy_worst``.
        patience: Evaluations without improvement that are borne.
        min_delta: What counts as an improvement must exceed this.
        mode: Whether larger (``"max"``) or smaller (``"min"``) is better.
    """

    def __init__(
        self,
        monitor: str = "global/accuracy",
        patience: int = 3,
        min_delta: float = 0.0,
        mode: Literal["min", "max"] = "max",
    ) -> None:
        if patience < 1:
            raise ConfigError(f"Expected `EarlyStopping.patience` to be >= 1, but got {patience}.")
        self.monitor, self.patience, self.min_delta, self.mode = monitor, patience, min_delta, mode
        self.best: float | None = None
        self.waited = 0

    def on_evaluate_end(self, federation: Federation, round: int, metrics: Mapping[str, float]) -> None:
        """Compare with the best so far."""
        if self.monitor not in metrics:
            raise ConfigError(
                f"Expected `EarlyStopping.monitor` to be one of {sorted(metrics)}, but got {self.monitor!r}."
            )
        value = metrics[self.monitor]
        gain = 0.0 if self.best is None else (value - self.best) * (1 if self.mode == "max" else -1)
        if self.best is None or gain > self.min_delta:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
            federation.should_stop = self.waited >= self.patience

    def state_dict(self) -> Tree:
        """The best value and how long it has stood."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Tree) -> None:
        """Go on waiting where the run was interrupted."""
        self.best, self.waited = state["best"], state["waited"]
