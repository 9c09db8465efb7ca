r"""FedAvg over adapters: LoRA factors and head are averaged, the foundation model never moves.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (AISTATS 2017), Algorithm 1;
with LoRA: Zhang et al., "Towards Building the Federated GPT: Federated Instruction Tuning" (FedIT, ICASSP 2024).

=====================  =========================================
paper                  here
=====================  =========================================
:math:`w_t`            ``server.adapter``
:math:`S_t`            ``cohort``
:math:`n_k`            ``update.num_examples``
:math:`E`              ``local_epochs`` (or ``local_steps``)
=====================  =========================================

A and B are averaged apart, as FedIT does: :math:`\bar B \bar A`, not the mean of the products :math:`B_k A_k`.

Assumption: client optimizers start afresh every round (the papers are silent for optimizers with state).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lit_fed.algorithms.base import Algorithm, Learner, broadcast, report
from lit_fed.core.aggregate import Weights, mean
from lit_fed.core.types import Client, ClientId, Private, Server, Task, Update


class FedAvg(Algorithm):
    """Train the global adapter at every client of the cohort, then average.

    Args:
        weights: ``"examples"`` weighs a client by its training examples, ``"uniform"`` all alike.
        local_steps: Optimizer steps of a client's turn, or
        local_epochs: its passes over the client's training data. Give exactly one; neither means one epoch.
    """

    def __init__(
        self, weights: Weights = "examples", local_steps: int | None = None, local_epochs: int | None = None
    ) -> None:
        super().__init__(local_steps, local_epochs)
        self.weights: Weights = weights

    def plan(self, server: Server, cohort: Sequence[Client]) -> dict[ClientId, Task]:
        """Everyone gets the global adapter."""
        return broadcast(server, cohort)

    def local(self, learner: Learner, task: Task, private: Private) -> tuple[Update, Private]:
        """Train it on the client's data."""
        learner.load(task.adapter)
        fit = learner.fit(steps=self.budget.steps, epochs=self.budget.epochs)
        return report(learner, learner.state(), fit), private

    def merge(self, server: Server, updates: Iterable[Update]) -> Server:
        """Average what came back, name by name."""
        return replace(server, adapter=mean(updates, server.adapter, self.weights))
