"""The hooks of a federation: a closed list, so that a misspelt one is an error and not a silence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lit_fed.core.types import Tree

if TYPE_CHECKING:
    from lit_fed.engine.federation import Federation


class Callback:
    """Acts on a federation while it runs. Subclass it and define the hooks you need.

    Hooks run on every process; use ``federation.is_global_zero`` for what only one may do. To end a run after the
    current round set ``federation.should_stop = True``.

    Lightning callbacks are something else: they see one client's local training, and may be given to a federation
    beside these.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse hooks that would never be called."""
        super().__init_subclass__(**kwargs)
        known = {name for name in vars(Callback) if name.startswith("on_")}
        unknown = sorted(name for name in vars(cls) if name.startswith("on_") and name not in known)
        if unknown:
            raise TypeError(f"{cls.__name__} defines {unknown}, which no federation calls. Hooks are {sorted(known)}.")

    def on_fit_start(self, federation: Federation) -> None:
        """After setup (or after a checkpoint was loaded), before the first round."""

    def on_round_start(self, federation: Federation, round: int, cohort: tuple[str, ...]) -> None:
        """Before a round; `cohort` are the ids of its clients."""

    def on_client_start(self, federation: Federation, round: int, client: str) -> None:
        """Before a client's turn, on the process that runs it."""

    def on_client_end(self, federation: Federation, round: int, client: str) -> None:
        """After a client's turn, on the process that ran it."""

    def on_evaluate_start(self, federation: Federation, round: int) -> None:
        """Before an evaluation."""

    def on_evaluate_end(self, federation: Federation, round: int, metrics: Mapping[str, float]) -> None:
        """After an evaluation; `metrics` as in ``summary.json``. `round` counts the rounds finished."""

    def on_round_end(self, federation: Federation, round: int, metrics: Mapping[str, float]) -> None:
        """After a round was merged (and evaluated, when it was its turn); `metrics` is its row of ``metrics.csv``."""

    def on_fit_end(self, federation: Federation) -> None:
        """After the last round."""

    def on_exception(self, federation: Federation, error: BaseException) -> None:
        """When a run ends early."""

    def state_dict(self) -> Tree:
        """What must survive a restart: tensors and JSON values."""
        return {}

    def load_state_dict(self, state: Tree) -> None:
        """Take back what `state_dict` gave."""
