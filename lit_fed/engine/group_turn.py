"""A client's turn beside others, whose training is done for several at once."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor

from lit_fed.adapters.state import AdapterView
from lit_fed.algorithms.base import GLOBAL, Algorithm, Objective, Predict, Rates, Where
from lit_fed.core.errors import ClientFailure, ConfigError
from lit_fed.core.names import block_of
from lit_fed.core.tree import all_finite
from lit_fed.core.types import AdapterState, Client, FitResult, Private, Task, Update


class NotTogetherError(Exception):
    """Clients cannot be trained together; says why, as the end of a sentence."""


@dataclass(frozen=True)
class Request:
    """A training that a client's turn has come to."""

    client: Client
    round: int
    fit: int
    """The how-manieth of the turn, from 0."""
    slot: str
    blocks: tuple[int, ...] | None
    """The blocks that run, ascending (`None`: all)."""
    adapter: Mapping[str, Tensor]
    """The slot's tensors, of these blocks and of none."""
    trained: tuple[str, ...]
    steps: int | None
    epochs: int | None
    objective: Objective | None
    rates: Mapping[str, float]

    @property
    def kind(self) -> Hashable:
        """Clients with equal kinds do the same with other numbers."""
        what = (self.slot, self.blocks, tuple(self.adapter), self.trained, tuple(self.rates.items()))
        return what, self.steps, self.epochs, self.fit, self.objective is None

    @property
    def feature(self) -> Hashable:
        """What decides whether it can be done together at all."""
        return self.slot, self.fit, self.objective is None


class GroupTurn:
    """A `lit_fed.algorithms.base.Learner` on dictionaries: it never touches the module.

    `local` of an algorithm is a function of what it is given. So it is run up to where it asks for a training; when
    that has been done, together with others', it is run again from the start, is given the answer, and goes on.

    Args:
        algorithm: The method.
        client: Whose turn it is.
        round: The round, from 0.
        task: What went down to it.
        private: What it has kept.
        view: The module's adapter.
        initial: The initial value of every slot.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        client: Client,
        round: int,
        task: Task,
        private: Private,
        view: AdapterView,
        initial: Mapping[str, Mapping[str, Tensor]],
    ) -> None:
        self.client, self.round, self.task, self.private = client, round, task, private
        self.seconds = 0.0
        """Its share of the time that was spent for all."""
        self.request: Request | None = None
        """What is to be done next; `None`: the turn is over."""
        self._algorithm, self._view, self._initial = algorithm, view, initial
        self._answers: list[tuple[Mapping[str, Tensor], FitResult]] = []
        self._outcome: tuple[Update, Private] | None = None
        self._failure: Exception | None = None
        self._begin()

    def advance(self) -> None:
        """Run `local` up to the first training that has not been done, or to its end.

        Raises:
            NotTogetherError: If it does something else than load, train and read adapters.
        """
        self._begin()
        try:
            self._outcome = self._algorithm.local(self, self.task, self.private)
        except _Asked as asked:
            self.request = asked.request
        except NotTogetherError:
            raise
        except Exception as error:
            if not self._answers:
                raise NotTogetherError(f"their work fails with {type(error).__name__} before they train") from error
            self._failure = error

    def _begin(self) -> None:
        self._states = {slot: dict(state) for slot, state in self._initial.items()}
        self._blocks: tuple[int, ...] | None = None
        self._fits, self.request = 0, None
        self.activate(GLOBAL)

    def answer(self, adapter: Mapping[str, Tensor], result: FitResult) -> None:
        """The training has been done, and this is what became of the slot."""
        self._answers.append((adapter, result))

    def outcome(self) -> tuple[Update, Private]:
        """What the turn came to; raises what it failed with."""
        if self._failure is not None:
            raise self._failure
        assert self._outcome is not None
        return self._outcome

    # -- what an algorithm asks -------------------------------------------------------------------------------------

    def load(self, adapter: AdapterState, slot: str = GLOBAL) -> None:
        """Tensors into a slot."""
        self._view.check(adapter, slot)
        self._states[slot].update(adapter)

    def fold(self, deltas: AdapterState) -> None:
        """Only back to the module's own frozen weights, which all clients share."""
        if deltas:
            raise NotTogetherError("each has frozen weights of its own")

    def state(self, slot: str = GLOBAL) -> dict[str, Tensor]:
        """A slot's tensors, of the selected blocks and of none."""
        state = {name: tensor.clone() for name, tensor in self._states[slot].items() if self._is_present(name)}
        if not all_finite(state):
            raise ClientFailure(self.client.id, self.round, "update", f"its {slot!r} adapter is not finite.")
        return state

    def select_blocks(self, blocks: Sequence[int] | None) -> None:
        """Run only these."""
        if blocks is not None and self._view.blocks is None:
            raise ConfigError("This algorithm runs parts of the model, but no transformer blocks were found in it.")
        self._blocks = None if blocks is None else tuple(sorted(blocks))

    def activate(
        self, slot: str = GLOBAL, where: Where | None = None, beside: Mapping[str, Where | None] | None = None
    ) -> None:
        """What `fit` trains."""
        if beside:
            raise NotTogetherError("each trains several slots at once")
        self._slot, self._where = slot, where

    def fit(
        self,
        *,
        steps: int | None = None,
        epochs: int | None = None,
        objective: Objective | None = None,
        rates: Rates | None = None,
    ) -> FitResult:
        """What came of it, or a pause until it has been done."""
        at, self._fits = self._fits, self._fits + 1
        if at < len(self._answers):
            adapter, result = self._answers[at]
            self._states[self._slot].update(adapter)
            if not math.isfinite(result.loss):
                reason = f"its training loss became {result.loss}."
                raise ClientFailure(self.client.id, self.round, "local", reason)
            return result
        present = {name: tensor for name, tensor in self._states[self._slot].items() if self._is_present(name)}
        parameters = self._view.parameters(self._slot)
        trained = tuple(n for n in present if n in parameters and (self._where is None or self._where(n)))
        given = {} if rates is None else {name: rates(name) for name in trained}
        own = {name: rate for name, rate in given.items() if rate is not None}
        raise _Asked(
            Request(
                self.client, self.round, at, self._slot, self._blocks, present, trained, steps, epochs, objective, own
            )
        )

    def targets(self) -> Tensor:
        """Not here."""
        self._reads("targets")

    def outputs(self, rule: Predict, split: str = "train", limit: int | None = None) -> Tensor:
        """Not here."""
        self._reads("outputs")

    def evaluate(
        self, split: str = "val", predict: Predict | None = None, limit: int | None = None
    ) -> dict[str, float]:
        """Not here."""
        self._reads("scores")

    def evaluate_each(
        self, adapters: Sequence[AdapterState], split: str = "val", limit: int | None = None
    ) -> list[dict[str, float]]:
        """Not here."""
        self._reads("scores")

    def _reads(self, what: str) -> NoReturn:
        raise NotTogetherError(f"{type(self._algorithm).__name__} asks clients for {what} of their data in their turns")

    def _is_present(self, name: str) -> bool:
        return self._blocks is None or block_of(name) in (None, *self._blocks)


class _Asked(BaseException):
    """Not an error, and not for an algorithm to catch: its `local` ends here, to be run again."""

    def __init__(self, request: Any) -> None:
        super().__init__()
        self.request: Request = request
