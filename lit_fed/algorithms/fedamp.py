r"""FedAMP: no global model, but a cloud model for every client, which clients with similar models shape most.

Huang et al., "Personalized Cross-Silo Federated Learning on Non-IID Data" (AAAI 2021), Algorithm 1, equations 3 to 6:

.. math::
    u_i &= \Big(1 - \sum_{j \ne i} \xi_{ij}\Big) w_i + \sum_{j \ne i} \xi_{ij} w_j, \qquad
    \xi_{ij} = \alpha_k A'(\lVert w_i - w_j \rVert^2), \qquad A'(x) = \frac{1}{\sigma} e^{-x / \sigma} \\
    w_i &\leftarrow \arg\min_w F_i(w) + \frac{\lambda}{2 \alpha_k} \lVert w - u_i \rVert^2

=============================  ========================================================
paper                          here
=============================  ========================================================
:math:`w_i`                    ``server.state["models"][name][i]``
:math:`\xi`                    ``server.state["attention"]``, row i for client i
:math:`u_i`                    ``task.adapter``
:math:`\alpha_k`               ``alpha``
:math:`\sigma`                 ``sigma``
:math:`\lambda`                ``penalty``
=============================  ========================================================

Nothing is private here: the server holds every client's personal adapter, and a client keeps no more than its name.

Assumption: with LoRA distances are those of the factors A, B and of the head, not of the products BA.
Assumption: distances are counted in units of their mean over all pairs of clients (``relative=True``), since those of
LoRA factors depend on rank, model and learning rate; the paper's are absolute (``relative=False``).
Assumption: alpha is the same in every round, by default sigma / M for M clients, with which clients of equal models
would be averaged alike. No more than sigma / (M - 1) is allowed, so that a client's own weight is never negative.
Assumption: the weight of the proximal term is penalty / alpha also where distances are relative; with the default alpha
it is penalty * M / sigma.
Assumption: a client starts its turn from its cloud model (the minimum does not say from where it is looked for).
Assumption: a client out of the cohort keeps its last model; one that never trained has no influence on others.
Assumption: a new client predicts with the mean of the models that came last.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lit_fed.algorithms.base import GLOBAL, Algorithm, Learner, Serving, report
from lit_fed.algorithms.fedprox import proximal
from lit_fed.core.aggregate import Weights, check_fits, mean
from lit_fed.core.types import AdapterState, Client, ClientId, Private, Server, Setting, Task, Update


class FedAMP(Algorithm):
    """Attentive message passing between clients' personal adapters.

    Args:
        penalty: Weight lambda of the proximal term, >= 0.
        sigma: Distance at which influence falls to 1/e, > 0.
        alpha: Step towards others, in (0, sigma / (clients - 1)]; `None` is sigma / clients.
        relative: Whether distances are in units of their mean over all pairs of clients.
        weights: For what a new client predicts with: ``"examples"`` or ``"uniform"``.
        local_steps: Optimizer steps of a client's turn, or
        local_epochs: its passes over the client's training data. Give exactly one; neither means one epoch.
    """

    def __init__(
        self,
        penalty: float = 0.01,
        sigma: float = 1.0,
        alpha: float | None = None,
        relative: bool = True,
        weights: Weights = "examples",
        local_steps: int | None = None,
        local_epochs: int | None = None,
    ) -> None:
        super().__init__(local_steps, local_epochs)
        self.penalty, self.sigma, self.alpha, self.relative = penalty, sigma, alpha, relative
        self.weights: Weights = weights

    def problems(self, setting: Setting) -> list[str]:
        """Nobody is pushed away, and a cloud model is a mean."""
        found, clients = super().problems(setting), len(setting.clients)
        if not self.penalty >= 0:
            found.append(f"Expected `algorithm.penalty` to be >= 0, but got {self.penalty}.")
        if not self.sigma > 0:
            found.append(f"Expected `algorithm.sigma` to be > 0, but got {self.sigma}.")
        elif self.alpha is not None and not 0 < self.alpha * max(clients - 1, 1) <= self.sigma:
            found.append(
                f"Expected `algorithm.alpha` to be in (0, {self.sigma / max(clients - 1, 1):g}] (`algorithm.sigma` over"
                f" the other clients), but got {self.alpha}. Lower it, or leave it out."
            )
        return found

    def init(self, adapter: AdapterState, setting: Setting) -> Server:
        """Every client's model is the initial one, and nobody has influence on anybody."""
        clients = sorted(client.id for client in setting.clients)
        models = {name: tensor.detach().clone().expand(len(clients), *tensor.shape) for name, tensor in adapter.items()}
        state = {
            "clients": clients,
            "trained": [False] * len(clients),
            "models": {name: stack.clone() for name, stack in models.items()},
            "attention": torch.eye(len(clients), dtype=torch.float64),
        }
        return Server(round=0, adapter=adapter, state=state)

    def plan(self, server: Server, cohort: Sequence[Client]) -> dict[ClientId, Task]:
        """Everyone gets a cloud model of its own."""
        index = {client: i for i, client in enumerate(server.state["clients"])}
        config = {"pull": self.penalty / self._alpha(len(index))}
        return {
            client.id: Task(_mix(server.state["models"], server.state["attention"][index[client.id]]), config)
            for client in cohort
        }

    def local(self, learner: Learner, task: Task, private: Private) -> tuple[Update, Private]:
        """Train near the cloud model."""
        learner.load(task.adapter)
        objective = proximal(task.adapter, task.config["pull"])
        fit = learner.fit(steps=self.budget.steps, epochs=self.budget.epochs, objective=objective)
        return report(learner, learner.state(), fit), {"client": learner.client.id}

    def merge(self, server: Server, updates: Iterable[Update]) -> Server:
        """Take in the models, and attend anew."""
        updates = sorted(updates, key=lambda update: update.client)
        index = {client: i for i, client in enumerate(server.state["clients"])}
        trained = list(server.state["trained"])
        models = {name: stack.clone() for name, stack in server.state["models"].items()}
        for update in updates:
            check_fits(update, server.adapter)
            trained[index[update.client]] = True
            for name, tensor in update.adapter.items():
                models[name][index[update.client]] = tensor
        others = attention(
            squared_distances(models), torch.tensor(trained), self._alpha(len(index)), self.sigma, self.relative
        )
        state = {**server.state, "trained": trained, "models": models, "attention": others}
        adapter = mean(updates, server.adapter, self.weights)
        return replace(server, adapter=adapter, state=state, metrics={"self_weight": float(others.diagonal().mean())})

    def serve(self, server: Server, private: Private) -> Serving:
        """A client predicts with its personal adapter."""
        if "client" not in private:
            return Serving({GLOBAL: server.adapter})
        i = server.state["clients"].index(private["client"])
        return Serving({GLOBAL: {name: stack[i].clone() for name, stack in server.state["models"].items()}})

    def _alpha(self, clients: int) -> float:
        return self.sigma / clients if self.alpha is None else self.alpha


def attention(distances: Tensor, trained: Tensor, alpha: float, sigma: float, relative: bool) -> Tensor:
    """How much each client's model counts in each client's cloud model.

    Args:
        distances: Squared distances between models, shape (M, M), float64.
        trained: Who has trained, shape (M); nobody else has influence.
        alpha: The step.
        sigma: Where influence falls to 1/e.
        relative: Whether distances are divided by their mean over pairs of clients that have trained.

    Returns:
        Shape (M, M); rows sum to 1.
    """
    other = ~torch.eye(len(distances), dtype=torch.bool)
    pairs = distances[other & trained & trained[:, None]]
    unit = float(pairs.mean()) if relative and pairs.numel() else 1.0
    weights = alpha / sigma * torch.exp(-distances / (sigma * (unit or 1.0)))
    weights = weights.where(other & trained, 0.0)
    return weights + torch.diag(1.0 - weights.sum(1))


def squared_distances(models: AdapterState) -> Tensor:
    """Squared distances between models that are stacked name by name, (M, ...) each; shape (M, M), float64."""
    flat = torch.cat([models[name].flatten(1).double() for name in sorted(models)], dim=1)
    return torch.stack([(flat - one).square().sum(1) for one in flat])


def _mix(models: AdapterState, weights: Tensor) -> dict[str, Tensor]:
    """The weighted sum of stacked models, in float64."""
    return {name: torch.tensordot(weights, stack.double(), 1).to(stack.dtype) for name, stack in models.items()}
