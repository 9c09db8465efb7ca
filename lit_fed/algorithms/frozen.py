"""Frozen: federated training of the task head alone, the floor that LoRA has to beat.

Linear probing of the foundation model, with FedAvg's aggregation.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lit_fed.algorithms.base import Algorithm, Learner, report
from lit_fed.core.aggregate import Weights, mean
from lit_fed.core.names import is_head
from lit_fed.core.types import Client, ClientId, Private, Server, Setting, Task, Update


class Frozen(Algorithm):
    """Train only the head at every client of the cohort, then average.

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

    def problems(self, setting: Setting) -> list[str]:
        """Without a head there is nothing to train."""
        missing = "`algorithm: Frozen` trains the task head alone, but the model has none. Use FedAvg."
        return super().problems(setting) + ([] if setting.model.has_head else [missing])

    def plan(self, server: Server, cohort: Sequence[Client]) -> dict[ClientId, Task]:
        """Only the head goes down: LoRA stays at its start (B = 0) everywhere."""
        head = {name: tensor for name, tensor in server.adapter.items() if is_head(name)}
        return {client.id: Task(head) for client in cohort}

    def local(self, learner: Learner, task: Task, private: Private) -> tuple[Update, Private]:
        """Train the head on the client's data."""
        learner.load(task.adapter)
        learner.activate(where=is_head)
        fit = learner.fit(steps=self.budget.steps, epochs=self.budget.epochs)
        head = {name: tensor for name, tensor in learner.state().items() if is_head(name)}
        return report(learner, head, fit), private

    def merge(self, server: Server, updates: Iterable[Update]) -> Server:
        """Average the heads; everything else keeps its value."""
        return replace(server, adapter=mean(updates, server.adapter, self.weights))
