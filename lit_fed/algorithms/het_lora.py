r"""HetLoRA: clients of different LoRA ranks, averaged after padding with zeros, weighted by how much they learned.

Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models" (EMNLP 2024, arXiv
2401.06432).

==========================================  =============================================================
paper                                       here
==========================================  =============================================================
:math:`r_k`                                 ``ranks_of(server)[client]``
:math:`\bar A, \bar B`                      the factors in ``server.adapter``, of the module's full rank
:math:`\|S_k\| = \|\Delta W_k\|_F`          ``strengths``: the Frobenius norm of :math:`B_k A_k`
:math:`\gamma`                              ``gamma``
:math:`\lambda`                             ``penalty``
==========================================  =============================================================

The server truncates its factors to :math:`r_k`. The client trains with rank self-pruning: it adds
:math:`\lambda \|B_k[:, \gamma r_k : r_k]\|_F \|A_k[\gamma r_k : r_k]\|_F` to its loss, and if that product of norms is
smaller after training than before, keeps :math:`\gamma r_k` components from now on. The server averages

.. math:: \bar A = \sum_k p_k A_k, \quad \bar B = \sum_k p_k B_k, \qquad p_k = \|B_k A_k\|_F \Big/ \sum_j \|B_j A_j\|_F.

Aggregation error: :math:`\bar B \bar A` is not the mean :math:`\sum_k p_k B_k A_k`. The metric ``aggregation_error``
says how far it is off, for these weights :math:`p_k`.

Assumption: strengths are taken layer by layer (``strength="layer"``); ``"model"`` takes one for all layers.
Assumption: where nobody learned anything (all strengths are 0), clients count alike.
Assumption: gamma is 0.99, so that for ranks up to 100 one component is pruned at a time; lambda is 0.01. At least one
component stays. The tail is pruned in all layers or in none, by the sum of the products of norms.
Assumption: a component that no client of the round holds keeps its value; averaged zeros could never be trained again.
Assumption: what is no LoRA factor is averaged as in FedAvg, by `weights`; the paper has nothing else.
Assumption: served is the global adapter at full rank.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lit_fed.algorithms.base import Learner, Objective, Step
from lit_fed.algorithms.capacities import Ranks
from lit_fed.algorithms.low_rank import LowRank, mean_of_rest, ranks_of
from lit_fed.core.aggregate import Weights, weighted_mean
from lit_fed.core.names import LORA_A, LORA_B
from lit_fed.core.products import aggregation_error, mean_product, product
from lit_fed.core.rank import Factors, pad, pairs, rank_of, truncate
from lit_fed.core.types import FitResult, Private, Server, Setting, Task, Update


class HetLoRA(LowRank):
    """Truncate, train and prune, pad with zeros, average by strength.

    Args:
        ranks: The LoRA rank a client can hold: a rank (``4``), or a fraction of the module's (``0.5``). One for all, a
            list for the clients or for the domains in sorted order, or a mapping from client or domain.
        gamma: Share of its rank that a client keeps when it prunes, in (0, 1]; 1 never prunes.
        penalty: Weight of the tail components' norms in the local loss, >= 0.
        strength: Whether a client's weight is the norm of its product in each ``"layer"`` or over the ``"model"``.
        shuffle_ranks: Deal a list to clients or domains in an order drawn with the seed, so that a rank does not always
            mean the same domain.
        weights: For what is no LoRA factor: ``"examples"`` or ``"uniform"``.
        local_steps: Optimizer steps of a client's turn, or
        local_epochs: its passes over the client's training data. Give exactly one; neither means one epoch.
    """

    def __init__(
        self,
        ranks: Ranks = 1.0,
        gamma: float = 0.99,
        penalty: float = 0.01,
        strength: Literal["layer", "model"] = "layer",
        shuffle_ranks: bool = False,
        weights: Weights = "examples",
        local_steps: int | None = None,
        local_epochs: int | None = None,
    ) -> None:
        super().__init__(ranks, shuffle_ranks, weights, local_steps, local_epochs)
        self.gamma, self.penalty = gamma, penalty
        self.strength: Literal["layer", "model"] = strength

    def problems(self, setting: Setting) -> list[str]:
        """Gamma is a share, the penalty none that rewards."""
        found = super().problems(setting)
        if not 0 < self.gamma <= 1:
            found.append(f"Expected `algorithm.gamma` to be in (0, 1], but got {self.gamma}.")
        if not self.penalty >= 0:
            found.append(f"Expected `algorithm.penalty` to be >= 0, but got {self.penalty}.")
        return found

    def local(self, learner: Learner, task: Task, private: Private) -> tuple[Update, Private]:
        """Train with the penalty; send the tail no more if it has become weaker."""
        update, private = super().local(learner, task, private)
        kept = self._kept(task.config["rank"])
        trained = update.metrics["steps"] > 0
        if trained and tail_norm(update.adapter, kept) < tail_norm(task.adapter, kept):
            update = replace(update, adapter=truncate(update.adapter, kept))
        return update, private

    def fit(self, learner: Learner, task: Task) -> FitResult:
        """With the penalty on the tail, if there is one."""
        rank: int = task.config["rank"]
        kept = self._kept(rank)
        objective = penalized(self.penalty, kept) if self.penalty and kept < rank else None
        return learner.fit(steps=self.budget.steps, epochs=self.budget.epochs, objective=objective)

    def merge(self, server: Server, updates: Iterable[Update]) -> Server:
        """Average factors by strength, padded with zeros; note down who pruned."""
        updates = sorted(updates, key=lambda update: update.client)
        if not updates:
            return server
        sent = [pairs(update.adapter) for update in updates]
        padded = [pairs(pad(update.adapter, server.adapter)) for update in updates]
        adapter = mean_of_rest(updates, server.adapter, self.weights)
        exact = {}
        for layer, weights in self._strengths(sent).items():
            exact[layer] = mean_product([one[layer] for one in sent], weights)
            held = max(one[layer][0].shape[0] for one in sent)
            a, b = pairs(server.adapter)[layer]
            new_a = weighted_mean([one[layer][0] for one in padded], weights).to(a.dtype)
            new_b = weighted_mean([one[layer][1] for one in padded], weights).to(b.dtype)
            new_a[held:], new_b[:, held:] = a[held:], b[:, held:]
            adapter |= {f"{layer}.{LORA_A}": new_a, f"{layer}.{LORA_B}": new_b}
        adapter = {name: adapter[name] for name in server.adapter}
        start = {layer: product(factors) for layer, factors in pairs(adapter).items()}
        ranks = ranks_of(server) | {update.client: rank_of(update.adapter) for update in updates}
        state = {**server.state, "ranks": [[client, rank] for client, rank in ranks.items()]}
        metrics = {"aggregation_error": aggregation_error(start, exact)}
        return replace(server, adapter=adapter, state=state, metrics=metrics)

    def _kept(self, rank: int) -> int:
        """What a client of this rank keeps when it prunes."""
        return max(1, math.floor(self.gamma * rank + 1e-9))

    def _strengths(self, sent: list[dict[str, Factors]]) -> dict[str, list[float]]:
        """Layer -> weight of each client."""
        norms = {layer: [product(one[layer]).norm() for one in sent] for layer in sent[0]}
        whole = [math.hypot(*column) for column in zip(*norms.values(), strict=True)]
        chosen = {layer: whole if self.strength == "model" else own for layer, own in norms.items()}
        return {layer: values if any(values) else [1.0] * len(values) for layer, values in chosen.items()}


def penalized(penalty: float, kept: int) -> Objective:
    """The module's loss, and what the components beyond the first `kept` weigh."""

    def objective(step: Step) -> Tensor:
        return step.loss() + penalty * tail_norm(step.parameters, kept)

    return objective


def tail_norm(adapter: Mapping[str, Tensor], kept: int) -> Tensor:
    """Over all layers, the sum of the product of the norms of A and of B beyond the first `kept` components."""
    norm = torch.linalg.vector_norm
    return torch.stack([norm(a[kept:]) * norm(b[:, kept:]) for a, b in pairs(adapter).values()]).sum()
