r"""FedProx: FedAvg whose clients are held near the global adapter.

Li et al., "Federated Optimization in Heterogeneous Networks" (MLSys 2020), Algorithm 2, equation 2:

.. math:: h_k(w; w_t) = F_k(w) + \frac{\mu}{2} \lVert w - w_t \rVert^2

=====================  =========================================
paper                  here
=====================  =========================================
:math:`w`              ``step.parameters`` (LoRA factors, head)
:math:`w_t`            ``task.adapter``
:math:`\mu`            ``mu``
=====================  =========================================

Assumption: with LoRA the distance is that of the factors A, B and of the head, not of the products BA.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from lit_fed.algorithms.base import Algorithm, Learner, Objective, Step, broadcast, report
from lit_fed.core.aggregate import Weights, mean
from lit_fed.core.types import AdapterState, Client, ClientId, Private, Server, Setting, Task, Update


class FedProx(Algorithm):
    """FedAvg with a proximal term.

    Args:
        mu: Weight of the proximal term, >= 0; 0 is FedAvg.
        weights: ``"examples"`` weighs a client by its training examples, ``"uniform"`` all alike.
        local_steps: Optimizer steps of a client's turn, or
        local_epochs: its passes over the client's training data. Give exactly one; neither means one epoch.
    """

    def __init__(
        self,
        mu: float = 0.01,
        weights: Weights = "examples",
        local_steps: int | None = None,
        local_epochs: int | None = None,
    ) -> None:
        super().__init__(local_steps, local_epochs)
        self.mu = mu
        self.weights: Weights = weights

    def problems(self, setting: Setting) -> list[str]:
        """A negative `mu` would push clients apart."""
        negative = [f"Expected `algorithm.mu` to be >= 0, but got {self.mu}."] if self.mu < 0 else []
        return super().problems(setting) + negative

    def plan(self, server: Server, cohort: Sequence[Client]) -> dict[ClientId, Task]:
        """Everyone gets the global adapter."""
        return broadcast(server, cohort)

    def local(self, learner: Learner, task: Task, private: Private) -> tuple[Update, Private]:
        """Train it on the client's data, near where it started."""
        learner.load(task.adapter)
        objective = proximal(task.adapter, self.mu)
        fit = learner.fit(steps=self.budget.steps, epochs=self.budget.epochs, objective=objective)
        return report(learner, learner.state(), fit), private

    def merge(self, server: Server, updates: Iterable[Update]) -> Server:
        """Average what came back, name by name."""
        return replace(server, adapter=mean(updates, server.adapter, self.weights))


def proximal(anchor: AdapterState, mu: float) -> Objective:
    """The module's loss plus ``mu / 2`` times the squared distance of the trained tensors from `anchor`."""
    here: dict[str, Tensor] = {}  # the anchor on the device, copied there once a turn

    def near(parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if not here:
            here.update({name: anchor[name].to(p.device, p.dtype) for name, p in parameters.items()})
        return here

    def objective(step: Step) -> Tensor:
        parameters = step.parameters
        anchors = near(parameters)
        loss = step.loss()
        return loss + mu / 2 * sum(
            ((p - anchors[name]).square().sum() for name, p in parameters.items()), loss.new_zeros(())
        )

    return objective
