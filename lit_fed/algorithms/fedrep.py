r"""FedRep: a shared representation and a head of one's own, trained in turns: first the head, then the body.

Collins et al., "Exploiting Shared Representations for Personalized Federated Learning" (ICML 2021), Algorithm 1:

.. math::
    h_i^{t} &\leftarrow \mathrm{GRD}_{\tau}\big(f_i(h, \phi^{t}),\ \text{over } h\big) \\
    \phi_i^{t+1} &\leftarrow \mathrm{GRD}\big(f_i(h_i^{t}, \phi),\ \text{over } \phi\big), \qquad
    \phi^{t+1} = \sum_i \frac{n_i}{\sum_j n_j} \phi_i^{t+1}

===============================  ================================================================
paper                            here
===============================  ================================================================
:math:`\phi`, representation     the body: ``task.adapter``
:math:`h_i`, head                ``private["head"]``
:math:`\tau`                     ``head_steps`` (or ``head_epochs``)
===============================  ================================================================

What is the body and what the head, and what a new client predicts with, is as in FedPer, with its assumptions.

Assumption: the head is trained as long as the body, which makes a turn twice as long as FedAvg's. The paper trains the
head for longer (ten epochs, and one to five for the body).
"""

from collections.abc import Collection
from dataclasses import replace

from lit_fed.algorithms.base import Budget, Learner
from lit_fed.algorithms.fedper import FedPer
from lit_fed.core.aggregate import Weights
from lit_fed.core.types import FitResult, Setting


class FedRep(FedPer):
    """FedPer whose head is trained before the body, each with the other frozen.

    Args:
        head_steps: Optimizer steps of the head in a turn, or
        head_epochs: its passes over the client's training data. Neither means as long as the body.
        head_blocks: Last blocks whose LoRA belongs to the head, beside the task head; 0 for none.
        weights: ``"examples"`` weighs a client by its training examples, ``"uniform"`` all alike.
        local_steps: Optimizer steps of the body in a turn, or
        local_epochs: its passes over the client's training data. Give exactly one; neither means one epoch.
    """

    def __init__(
        self,
        head_steps: int | None = None,
        head_epochs: int | None = None,
        head_blocks: int = 0,
        weights: Weights = "examples",
        local_steps: int | None = None,
        local_epochs: int | None = None,
    ) -> None:
        super().__init__(head_blocks, weights, local_steps, local_epochs)
        self.head_steps, self.head_epochs = head_steps, head_epochs

    @property
    def head(self) -> Budget:
        """How long the head is trained."""
        return self.budget.part(self.head_steps, self.head_epochs)

    def problems(self, setting: Setting) -> list[str]:
        """The head is trained."""
        return super().problems(setting) + ([] if self.head == self.budget else self.head.problems("head"))

    def fit(self, learner: Learner, body: Collection[str]) -> FitResult:
        """The head with the body frozen, then the body with the head frozen."""
        steps = 0
        if learner.state().keys() - set(body):
            learner.activate(where=lambda name: name not in body)
            steps = learner.fit(steps=self.head.steps, epochs=self.head.epochs).num_steps
        learner.activate(where=lambda name: name in body)
        fit = learner.fit(steps=self.budget.steps, epochs=self.budget.epochs)
        return replace(fit, num_steps=steps + fit.num_steps)
