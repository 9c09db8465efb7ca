"""Centralized: all training data in one place, the ceiling that federated methods are measured against.

It makes as many optimizer steps in a round as the clients of a federation would make together: ``local_epochs`` passes
over the pooled data, or ``local_steps`` times the number of clients.

Assumption: the optimizer starts afresh every round, as the clients' do, so that rounds are comparable.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lit_fed.algorithms.base import Algorithm, Learner, broadcast, report
from lit_fed.core.aggregate import mean
from lit_fed.core.types import Client, ClientId, Private, Server, Task, Update


class Centralized(Algorithm):
    """Train one adapter on everybody's data."""

    pools_clients = True

    def plan(self, server: Server, cohort: Sequence[Client]) -> dict[ClientId, Task]:
        """The one client gets the adapter."""
        return broadcast(server, cohort)

    def local(self, learner: Learner, task: Task, private: Private) -> tuple[Update, Private]:
        """Train on the pooled data."""
        learner.load(task.adapter)
        steps = self.budget.steps * learner.client.stands_for if self.budget.steps else None
        fit = learner.fit(steps=steps, epochs=self.budget.epochs)
        return report(learner, learner.state(), fit), private

    def merge(self, server: Server, updates: Iterable[Update]) -> Server:
        """The mean over one is that one."""
        return replace(server, adapter=mean(updates, server.adapter, "uniform"))
