"""The interface every method fits: what the server plans, what a client does, what the server makes of it.

The seam is where the network is: `plan` and `merge` run on the server, `local` on the client. State is passed, never
hidden; what must survive a restart is in `Server` or `Private`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeAlias

from torch import Tensor

from lit_fed.core.types import AdapterState, Client, ClientId, FitResult, Private, Server, Setting, Task, Update

GLOBAL, LOCAL = "global", "local"
Blend: TypeAlias = Mapping[str, Tensor | float]
"""Slots, and how much of each: a number, or one for each row of a batch, (B,). What the slots' LoRA adds to a layer is
summed with these weights, and so is what their copies of a head say."""


class Step(Protocol):
    """What one local step offers to an objective, and one batch to a `Predict` function."""

    @property
    def batch(self) -> Any:
        """The batch, on the device."""
        ...

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The tensors of the active slot that are trained, live, by canonical name."""
        ...

    def loss(self, blend: Blend | None = None) -> Tensor:
        """The module's own loss of the batch (its `training_step`), a scalar; of the active slot, or of a blend."""
        ...

    def logits(self, slot: str | Blend | None = GLOBAL) -> Tensor:
        """Logits of the batch with one slot active; `None` is the base model without adapters. Shape (B, ..., C)."""
        ...

    def features(self, slot: str | Blend | None = GLOBAL) -> Tensor:
        """What the head sees, with one slot active. Shape (B, D)."""
        ...

    def logits_and_features(self, slot: str | None = GLOBAL) -> tuple[Tensor, Tensor]:
        """Both with one slot active, from one pass where the module can. Shapes (B, ..., C) and (B, D)."""
        ...

    def classify(self, features: Tensor, slot: str = GLOBAL) -> Tensor:
        """What the head of a slot makes of features (B, D): logits (B, C)."""
        ...

    def gate(self, features: Tensor) -> Tensor:
        """The weights that the gate (see `Algorithm.gate`) gives two slots, from features (B, D): (B, 2), sums of 1."""
        ...

    def exit_logits(self, depths: Sequence[int]) -> list[Tensor]:
        """Logits after each of these numbers of blocks, from one pass through the blocks. Shapes (B, ..., C).

        At a depth of `Algorithm.exits` they are those of its own head, else of the task head.
        """
        ...

    def targets(self) -> Tensor:
        """Targets of the batch, in the form the module's loss takes."""
        ...


Objective: TypeAlias = Callable[[Step], Tensor]
"""A local loss: a pure function of what a step offers, returning a scalar."""
Predict: TypeAlias = Callable[[Step], Tensor]
"""How a client predicts: logits of a batch from what a step offers. A dataclass of JSON values and tensors is stored
with what the client predicts with, and exported."""
Where: TypeAlias = Callable[[str], bool]
"""A choice of tensors by canonical name; see `lit_fed.core.names`."""
Rates: TypeAlias = Callable[[str], float | None]
"""The learning rate of a tensor by canonical name; `None` is the optimizer's."""


class Learner(Protocol):
    """One client's turn with the resident module. The engine provides it; tests use a toy of twenty lines."""

    @property
    def client(self) -> Client:
        """Whose turn it is."""
        ...

    @property
    def round(self) -> int:
        """The round, from 0."""
        ...

    def load(self, adapter: AdapterState, slot: str = GLOBAL) -> None:
        """Copy tensors into a slot in place; names that are absent keep their values."""
        ...

    def fold(self, deltas: AdapterState) -> None:
        """Add to frozen weights: those named are the module's own plus their delta, all others the module's own.

        Names end in ``.delta``, see `lit_fed.core.names`. Holds until the end of the turn, or the next call.
        """
        ...

    def state(self, slot: str = GLOBAL) -> dict[str, Tensor]:
        """A slot's tensors as float32 on the CPU; only those of the selected blocks, and all that is in no block."""
        ...

    def select_blocks(self, blocks: Sequence[int] | None) -> None:
        """Run only these blocks, in order, gaps closed (`None`: all). Holds until the end of the turn."""
        ...

    def activate(
        self, slot: str = GLOBAL, where: Where | None = None, beside: Mapping[str, Where | None] | None = None
    ) -> None:
        """Choose what `fit` trains, and the slot that the module's own forward runs with.

        Args:
            slot: The slot that is active, and trained.
            where: Which of its tensors are trained, by canonical name; `None`: all.
            beside: Other slots that are trained too, and what of them; for objectives that ask a step for them.
        """
        ...

    def fit(
        self,
        *,
        steps: int | None = None,
        epochs: int | None = None,
        objective: Objective | None = None,
        rates: Rates | None = None,
    ) -> FitResult:
        """Train on the client's data, for a number of optimizer steps or of epochs, with fresh optimizers.

        Args:
            steps: Optimizer steps, or
            epochs: passes over the data; exactly one of the two.
            objective: The loss; `None`: the module's own.
            rates: Learning rates of some tensors in place of the optimizer's; a scheduler scales them alike.
        """
        ...

    def targets(self) -> Tensor:
        """The targets of all the client's training data, on the CPU; of a module that offers ``targets``."""
        ...

    def outputs(self, rule: Predict, split: str = "train", limit: int | None = None) -> Tensor:
        """What a rule makes of the client's own split, joined over batches in order, on the CPU; without gradients.

        With a `limit`, of at most so many examples, as in `evaluate`.
        """
        ...

    def evaluate(
        self, split: str = "val", predict: Predict | None = None, limit: int | None = None
    ) -> dict[str, float]:
        """The module's metrics on the client's own split, each a mean over examples, and `num_examples`.

        With a `limit`, on at most so many examples of it: drawn once, the same in every turn.
        """
        ...

    def evaluate_each(
        self, adapters: Sequence[AdapterState], split: str = "val", limit: int | None = None
    ) -> list[dict[str, float]]:
        """`evaluate`, with each of some adapters in slot ``"global"``; the frozen model runs once, for all of them.

        Each has all names of the slot, which afterwards holds values of no meaning. The module offers ``logits``.
        """
        ...


@dataclass(frozen=True)
class Serving:
    """What a client, or a new client, predicts with."""

    adapters: Mapping[str, AdapterState]
    """Slot -> adapter."""
    blocks: tuple[int, ...] | None = None
    """The blocks of the model it runs (`None`: all)."""
    predict: Predict | None = None
    """How slots become logits; `None`: the module's own forward with slot ``"global"``."""
    folded: AdapterState = field(default_factory=dict)
    """What is folded into the frozen weights: names that end in ``.delta``."""


@dataclass(frozen=True)
class Budget:
    """How long a client works: optimizer steps or epochs, exactly one of them."""

    steps: int | None = None
    epochs: int | None = None

    def part(self, steps: int | None, epochs: int | None) -> "Budget":
        """The length of a part of the turn that has options of its own; without a value they mean this one."""
        return self if steps is None and epochs is None else Budget(steps, epochs)

    def problems(self, part: str = "local") -> list[str]:
        """What is wrong with it, in the words of the configuration, whose keys begin with the part's name."""
        given = {f"{part}_steps": self.steps, f"{part}_epochs": self.epochs}
        if sum(value is not None for value in given.values()) != 1:
            keys = " and ".join(f"`algorithm.{key}`" for key in given)
            return [f"Expected exactly one of {keys}, but got {given}."]
        return [
            f"Expected `algorithm.{k}` to be >= 1, but got {v}." for k, v in given.items() if v is not None and v < 1
        ]


class Algorithm(ABC):
    """A federated method. Subclasses read like the pseudo-code of their paper.

    Args:
        local_steps: Optimizer steps of a client's turn, or
        local_epochs: its passes over the client's training data. Give exactly one; neither means one epoch.
    """

    slots: ClassVar[tuple[str, ...]] = (GLOBAL,)
    """Named adapters the method needs in the module."""
    needs: frozenset[str] = frozenset()
    """Methods the module must offer beyond Lightning's: of ``logits``, ``features``, ``targets``, ``classify``."""
    folds: bool = False
    """Whether it adds to the frozen weights of the layers with LoRA."""
    pools_clients: ClassVar[bool] = False
    """Whether all training data are one client's (the centralized ceiling)."""

    def __init__(self, local_steps: int | None = None, local_epochs: int | None = None) -> None:
        if local_steps is None and local_epochs is None:
            local_epochs = 1
        self.budget = Budget(local_steps, local_epochs)

    @property
    def measures_memory(self) -> bool:
        """Whether `Setting.model.training_bytes` is to be measured."""
        return False

    @property
    def needs_validation(self) -> bool:
        """Whether every client must hold validation data: the method asks ``learner.evaluate("val")``."""
        return False

    def problems(self, setting: Setting) -> list[str]:
        """What is wrong with the settings, for this model and these clients; one sentence each, all at once."""
        return self.budget.problems()

    def exits(self, setting: Setting) -> tuple[int, ...]:
        """Depths, in blocks, that get a head of their own, a copy of the task head; asked when nothing is wrong."""
        return ()

    def gate(self, setting: Setting) -> int | None:
        """Width of the adapter in the gate between two slots, or `None` for no gate; asked when nothing is wrong."""
        return None

    def parts(self, setting: Setting) -> Mapping[str, Mapping[str, Any]]:
        """What else the module is given, part -> settings (`lit_fed.adapters.parts`); asked when nothing is wrong."""
        return {}

    def init(self, adapter: AdapterState, setting: Setting) -> Server:
        """The server before the first round, from the module's initial adapter."""
        return Server(round=0, adapter=adapter)

    def stages(self, server: Server) -> dict[str, Server]:
        """For a dry run: what kinds of rounds there are, by name, and a server before each; none if all are alike."""
        return {}

    @abstractmethod
    def plan(self, server: Server, cohort: Sequence[Client]) -> dict[ClientId, Task]:
        """What goes down to each client of the cohort; a client without a task sits the round out. On the server."""

    @abstractmethod
    def local(self, learner: Learner, task: Task, private: Private) -> tuple[Update, Private]:
        """One client's turn: what it sends, and what it keeps. On the client."""

    @abstractmethod
    def merge(self, server: Server, updates: Iterable[Update]) -> Server:
        """The server after the round, from what the clients sent (in client-id order). On the server."""

    def serve(self, server: Server, private: Private) -> Serving:
        """What a client with this private state predicts with; a new client's private state is empty."""
        return Serving({GLOBAL: server.adapter})


def broadcast(server: Server, cohort: Sequence[Client]) -> dict[ClientId, Task]:
    """The plan of most methods: everyone gets the global adapter."""
    task = Task(server.adapter)
    return {client.id: task for client in cohort}


def report(learner: Learner, adapter: AdapterState, fit: FitResult) -> Update:
    """An update with the numbers every method reports."""
    metrics = {"loss": fit.loss, "steps": float(fit.num_steps), **fit.metrics}
    return Update(learner.client.id, adapter, fit.num_examples, metrics)
