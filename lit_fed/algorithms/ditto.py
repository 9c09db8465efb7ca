r"""Ditto: FedAvg, and beside it at every client a personal adapter that is held near the global one.

Li et al., "Ditto: Fair and Robust Federated Learning Through Personalization" (ICML 2021), Algorithm 1:

.. math:: \min_{v_k} h_k(v_k; w) = F_k(v_k) + \frac{\lambda}{2} \lVert v_k - w \rVert^2

=====================  ===================================================
paper                  here
=====================  ===================================================
:math:`w^t`            ``task.adapter``
:math:`v_k`            ``private["adapter"]``
:math:`\lambda`        ``mu``
:math:`s`              ``personal_steps`` (or ``personal_epochs``)
=====================  ===================================================

The personal adapter never reaches the server, so that the global one is FedAvg's, bit for bit, whatever `mu` is. With
:math:`\mu = 0` the personal one is what `Local` trains.

Assumption: with LoRA the distance is that of the factors A, B and of the head, not of the products BA.
Assumption: a personal adapter starts as the global one of the client's first turn.
Assumption: it is trained as long as the global one, which makes a turn twice as long as FedAvg's.
Assumption: mu is 0.1; the paper chooses it for each data set.
"""

from dataclasses import replace

from lit_fed.algorithms.base import GLOBAL, Budget, Learner, Serving
from lit_fed.algorithms.fedavg import FedAvg
from lit_fed.algorithms.fedprox import proximal
from lit_fed.core.aggregate import Weights
from lit_fed.core.types import Private, Server, Setting, Task, Update


class Ditto(FedAvg):
    """FedAvg, and a personal adapter near the global one at every client.

    Args:
        mu: Weight of the proximal term, >= 0; 0 leaves the personal adapter to itself.
        personal_steps: Optimizer steps of the personal adapter in a turn, or
        personal_epochs: its passes over the client's training data. Neither means as long as the global one.
        weights: ``"examples"`` weighs a client by its training examples, ``"uniform"`` all alike.
        local_steps: Optimizer steps of the global adapter in a turn, or
        local_epochs: its passes over the client's training data. Give exactly one; neither means one epoch.
    """

    def __init__(
        self,
        mu: float = 0.1,
        personal_steps: int | None = None,
        personal_epochs: int | None = None,
        weights: Weights = "examples",
        local_steps: int | None = None,
        local_epochs: int | None = None,
    ) -> None:
        super().__init__(weights, local_steps, local_epochs)
        self.mu, self.personal_steps, self.personal_epochs = mu, personal_steps, personal_epochs

    @property
    def personal(self) -> Budget:
        """How long the personal adapter is trained."""
        return self.budget.part(self.personal_steps, self.personal_epochs)

    def problems(self, setting: Setting) -> list[str]:
        """The personal adapter is trained, and not pushed away from the global one."""
        found = super().problems(setting)
        if self.personal != self.budget:
            found += self.personal.problems("personal")
        if not self.mu >= 0:
            found.append(f"Expected `algorithm.mu` to be >= 0, but got {self.mu}.")
        return found

    def local(self, learner: Learner, task: Task, private: Private) -> tuple[Update, Private]:
        """Train the global adapter as FedAvg does, then the personal one near what was received."""
        update, _ = super().local(learner, task, private)
        learner.load(private.get("adapter", task.adapter))
        objective = proximal(task.adapter, self.mu)
        fit = learner.fit(steps=self.personal.steps, epochs=self.personal.epochs, objective=objective)
        metrics = {**update.metrics, "steps": update.metrics["steps"] + fit.num_steps}
        return replace(update, metrics=metrics), {"adapter": learner.state()}

    def serve(self, server: Server, private: Private) -> Serving:
        """A client predicts with its personal adapter, a new client with the global one."""
        return Serving({GLOBAL: private.get("adapter", server.adapter)})
