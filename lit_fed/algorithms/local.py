"""Local only: every client tunes an adapter of its own, and nothing is ever sent.

The baseline that says what federation is worth to a client.

Assumption: all clients start from the same initial adapter; a client that has not trained yet predicts with it.
"""

from collections.abc import Iterable, Sequence

from lit_fed.algorithms.base import GLOBAL, Algorithm, Learner, Serving, report
from lit_fed.core.types import Client, ClientId, Private, Server, Task, Update


class Local(Algorithm):
    """Train a private adapter at every client of the cohort; nothing goes down or up."""

    def plan(self, server: Server, cohort: Sequence[Client]) -> dict[ClientId, Task]:
        """Nothing: the initial adapter comes with the module."""
        return {client.id: Task({}) for client in cohort}

    def local(self, learner: Learner, task: Task, private: Private) -> tuple[Update, Private]:
        """Go on with the private adapter."""
        learner.load(private.get("adapter", {}))
        fit = learner.fit(steps=self.budget.steps, epochs=self.budget.epochs)
        return report(learner, {}, fit), {"adapter": learner.state()}

    def merge(self, server: Server, updates: Iterable[Update]) -> Server:
        """Nothing came."""
        return server

    def serve(self, server: Server, private: Private) -> Serving:
        """A client predicts with its own adapter."""
        return Serving({GLOBAL: private.get("adapter", server.adapter)})
