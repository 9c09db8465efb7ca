r"""FedAvgM, FedAdam, FedYogi: FedAvg whose server treats the mean change of a round as a gradient.

Reddi et al., "Adaptive Federated Optimization" (ICLR 2021), Algorithm 2; Hsu et al., "Measuring the Effects of
Non-Identical Data Distribution for Federated Visual Classification" (2019) for FedAvgM.

=============================  ==================================================
paper                          here
=============================  ==================================================
:math:`x_t`                    ``server.adapter``
:math:`\Delta_t`               minus the ``delta`` of `lit_fed.core.server_opt`
:math:`\eta_l`                 the module's own optimizer
:math:`\eta`                   ``server_lr``
:math:`\beta_1, \beta_2, \tau`  ``beta1``, ``beta2``, ``tau``
=============================  ==================================================

Assumption: the pseudo-gradient is the mean weighted by `weights`, like FedAvg's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lit_fed.algorithms.base import Algorithm, Learner, broadcast, report
from lit_fed.core.aggregate import Weights, mean
from lit_fed.core.server_opt import Adam, ServerOptimizer, Sgd, Yogi
from lit_fed.core.types import Client, ClientId, Private, Server, Setting, Task, Update


class _ServerOptimized(Algorithm):
    """FedAvg's clients, and a server that takes an optimizer step towards their mean."""

    def __init__(
        self, server_opt: ServerOptimizer, weights: Weights, local_steps: int | None, local_epochs: int | None
    ) -> None:
        super().__init__(local_steps, local_epochs)
        self.server_opt = server_opt
        self.weights: Weights = weights

    def problems(self, setting: Setting) -> list[str]:
        """Learning rates and tau are positive, momenta in [0, 1)."""
        problems = super().problems(setting)
        for name, value in vars(self.server_opt).items():
            key = {"lr": "server_lr"}.get(name, name)
            if name in ("lr", "tau") and not value > 0:
                problems.append(f"Expected `algorithm.{key}` to be > 0, but got {value}.")
            if name in ("momentum", "beta1", "beta2") and not 0 <= value < 1:
                problems.append(f"Expected `algorithm.{key}` to be in [0, 1), but got {value}.")
        return problems

    def plan(self, server: Server, cohort: Sequence[Client]) -> dict[ClientId, Task]:
        """Everyone gets the global adapter."""
        return broadcast(server, cohort)

    def local(self, learner: Learner, task: Task, private: Private) -> tuple[Update, Private]:
        """Train it on the client's data."""
        learner.load(task.adapter)
        fit = learner.fit(steps=self.budget.steps, epochs=self.budget.epochs)
        return report(learner, learner.state(), fit), private

    def merge(self, server: Server, updates: Iterable[Update]) -> Server:
        """One optimizer step along the mean change."""
        target = mean(updates, server.adapter, self.weights)
        adapter, state = self.server_opt.step(server.adapter, target, server.state)
        return replace(server, adapter=adapter, state=state)


class FedAvgM(_ServerOptimized):
    """FedAvg with server momentum.

    Args:
        server_lr: Step along the velocity; 1 with momentum 0 is FedAvg.
        momentum: Server momentum, in [0, 1).
        nesterov: Whether to look ahead along the new velocity.
        weights: ``"examples"`` or ``"uniform"``.
        local_steps: Optimizer steps of a client's turn, or
        local_epochs: its passes over the client's training data. Give exactly one; neither means one epoch.
    """

    def __init__(
        self,
        server_lr: float = 1.0,
        momentum: float = 0.9,
        nesterov: bool = False,
        weights: Weights = "examples",
        local_steps: int | None = None,
        local_epochs: int | None = None,
    ) -> None:
        super().__init__(Sgd(server_lr, momentum, nesterov), weights, local_steps, local_epochs)


class FedAdam(_ServerOptimized):
    """FedAvg with Adam on the server.

    Args:
        server_lr: Server learning rate.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        tau: Degree of adaptivity, added to the root of the second moment.
        weights: ``"examples"`` or ``"uniform"``.
        local_steps: Optimizer steps of a client's turn, or
        local_epochs: its passes over the client's training data. Give exactly one; neither means one epoch.
    """

    def __init__(
        self,
        server_lr: float = 1e-2,
        beta1: float = 0.9,
        beta2: float = 0.99,
        tau: float = 1e-3,
        weights: Weights = "examples",
        local_steps: int | None = None,
        local_epochs: int | None = None,
    ) -> None:
        super().__init__(Adam(server_lr, beta1, beta2, tau), weights, local_steps, local_epochs)


class FedYogi(_ServerOptimized):
    """FedAvg with Yogi on the server.

    Args:
        server_lr: Server learning rate.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        tau: Degree of adaptivity, added to the root of the second moment.
        weights: ``"examples"`` or ``"uniform"``.
        local_steps: Optimizer steps of a client's turn, or
        local_epochs: its passes over the client's training data. Give exactly one; neither means one epoch.
    """

    def __init__(
        self,
        server_lr: float = 1e-2,
        beta1: float = 0.9,
        beta2: float = 0.99,
        tau: float = 1e-3,
        weights: Weights = "examples",
        local_steps: int | None = None,
        local_epochs: int | None = None,
    ) -> None:
        super().__init__(Yogi(server_lr, beta1, beta2, tau), weights, local_steps, local_epochs)
