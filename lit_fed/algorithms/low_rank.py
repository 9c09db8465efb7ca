"""What methods for clients of a lower LoRA rank share: the first components go down, are trained and come back.

The resident module has the full rank r; a client of rank r_k trains its first r_k components and has zeros in the
others, which get no gradient and stay zero (`lit_fed.core.rank`). Tasks and updates hold the r_k components alone.

Assumption: the scaling alpha / r stays that of the full rank, so that a component means the same for everybody.
Assumption: where layers have different ranks, r is the largest; a layer of fewer components than r_k trains all it has.

The bytes are those of rank r_k. Compute and memory of a simulated client are those of rank r: what a real client saves
there is not measured.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from lit_fed.algorithms import capacities
from lit_fed.algorithms.base import Algorithm, Learner, report
from lit_fed.algorithms.capacities import Ranks
from lit_fed.core.aggregate import Weights, mean
from lit_fed.core.names import factor_of
from lit_fed.core.rank import check_pairs, pad, truncate
from lit_fed.core.types import AdapterState, Client, ClientId, FitResult, Private, Server, Setting, Task, Update


class LowRank(Algorithm):
    """Clients of different LoRA ranks; subclasses say what the server makes of their factors.

    Args:
        ranks: The LoRA rank a client can hold: a rank (``4``), or a fraction of the module's (``0.5``). One for all, a
            list for the clients or for the domains in sorted order, or a mapping from client or domain.
        shuffle_ranks: Deal a list to clients or domains in an order drawn with the seed, so that a rank does not always
            mean the same domain.
        weights: ``"examples"`` weighs a client by its training examples, ``"uniform"`` all alike.
        local_steps: Optimizer steps of a client's turn, or
        local_epochs: its passes over the client's training data. Give exactly one; neither means one epoch.
    """

    def __init__(
        self,
        ranks: Ranks = 1.0,
        shuffle_ranks: bool = False,
        weights: Weights = "examples",
        local_steps: int | None = None,
        local_epochs: int | None = None,
    ) -> None:
        super().__init__(local_steps, local_epochs)
        self.ranks, self.shuffle_ranks = ranks, shuffle_ranks
        self.weights: Weights = weights

    def problems(self, setting: Setting) -> list[str]:
        """Ranks fit the model and the clients."""
        return super().problems(setting) + capacities.problems(self.ranks, setting, "ranks")

    def init(self, adapter: AdapterState, setting: Setting) -> Server:
        """The server knows everybody's rank."""
        check_pairs(adapter, setting.model.rank)
        held = capacities.resolve(self.ranks, setting, self.shuffle_ranks, "ranks")
        return Server(0, adapter, {"ranks": [[client, rank] for client, rank in held.items()]})

    def plan(self, server: Server, cohort: Sequence[Client]) -> dict[ClientId, Task]:
        """Everyone gets the first components of the global adapter, as many as it can hold."""
        held = ranks_of(server)
        return {c.id: Task(truncate(server.adapter, held[c.id]), {"rank": held[c.id]}) for c in cohort}

    def local(self, learner: Learner, task: Task, private: Private) -> tuple[Update, Private]:
        """Train them on the client's data."""
        learner.load(pad(task.adapter, learner.state()))
        fit = self.fit(learner, task)
        return report(learner, truncate(learner.state(), task.config["rank"]), fit), private

    def fit(self, learner: Learner, task: Task) -> FitResult:
        """Local training as such."""
        return learner.fit(steps=self.budget.steps, epochs=self.budget.epochs)


def lora_problems(algorithm: Algorithm, setting: Setting) -> list[str]:
    """What is wrong for a method about LoRA if the model has none."""
    name = type(algorithm).__name__
    missing = f"`algorithm: {name}` is about LoRA, but the model has none. Set `model.lora`, or use FedAvg."
    return [] if setting.model.rank else [missing]


def ranks_of(server: Server) -> dict[ClientId, int]:
    """Client -> its rank."""
    return dict(server.state["ranks"])


def mean_of_rest(updates: Sequence[Update], old: AdapterState, weights: Weights) -> dict[str, Tensor]:
    """FedAvg of what is no LoRA factor: the head, and all else that is trained."""
    sent = [replace(update, adapter=_rest(update.adapter)) for update in updates]
    return mean(sent, _rest(old), weights)


def _rest(adapter: AdapterState) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in adapter.items() if factor_of(name) is None}
