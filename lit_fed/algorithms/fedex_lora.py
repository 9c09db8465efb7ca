r"""FedEx-LoRA: A and B are averaged apart, and what that misses of the mean product goes into the frozen weights.

Singhal et al., "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation Models" (ACL 2025,
arXiv 2410.09432).

==========================================  ========================================
paper                                       here
==========================================  ========================================
:math:`\bar A, \bar B`                      the factors in ``server.adapter``
:math:`\Delta W_{res}`                      ``rest`` in `lit_fed.algorithms.folded`
:math:`W^t - W^0`                           ``deltas_of(server)``
==========================================  ========================================

.. math:: \bar A = \sum_k p_k A_k, \quad \bar B = \sum_k p_k B_k, \qquad
          W \leftarrow W + \sum_k p_k B_k A_k - \bar B \bar A.

Aggregation error: none but rounding to float32; the metric ``aggregation_error`` says how much.

A client that keeps its folded weights would need the residual of the last round alone, as published. Its rank is at
most the sum of the ranks of the cohort, so as factors it takes that many times (m + n) numbers for a layer of shape
(m, n). Tasks here carry the dense sum, see `lit_fed.algorithms.folded`.

Assumption: clients weigh by their examples (the paper's means are uniform: ``weights="uniform"``).
Assumption: what is no LoRA factor is averaged as in FedAvg.
"""

from collections.abc import Iterable, Sequence

from lit_fed.algorithms.base import Algorithm, Learner, Serving, broadcast, report
from lit_fed.algorithms.folded import fold_rest, serve_folded, unpack, with_deltas
from lit_fed.algorithms.low_rank import lora_problems
from lit_fed.core.aggregate import Weights, client_weights, mean
from lit_fed.core.products import mean_product
from lit_fed.core.rank import check_pairs, pairs
from lit_fed.core.types import AdapterState, Client, ClientId, Private, Server, Setting, Task, Update


class FedExLoRA(Algorithm):
    """FedAvg, made exact by folding the rest into the frozen weights.

    Args:
        weights: ``"examples"`` weighs a client by its training examples, ``"uniform"`` all alike.
        local_steps: Optimizer steps of a client's turn, or
        local_epochs: its passes over the client's training data. Give exactly one; neither means one epoch.
    """

    folds = True

    def __init__(
        self, weights: Weights = "examples", local_steps: int | None = None, local_epochs: int | None = None
    ) -> None:
        super().__init__(local_steps, local_epochs)
        self.weights: Weights = weights

    def problems(self, setting: Setting) -> list[str]:
        """Without LoRA there is nothing to make exact."""
        return super().problems(setting) + lora_problems(self, setting)

    def init(self, adapter: AdapterState, setting: Setting) -> Server:
        """The server; every layer's update must be a product."""
        check_pairs(adapter, setting.model.rank)
        return super().init(adapter, setting)

    def plan(self, server: Server, cohort: Sequence[Client]) -> dict[ClientId, Task]:
        """Everyone gets what has been folded, and the global adapter."""
        return with_deltas(broadcast(server, cohort), server)

    def local(self, learner: Learner, task: Task, private: Private) -> tuple[Update, Private]:
        """Fold, then train."""
        learner.load(unpack(learner, task).adapter)
        fit = learner.fit(steps=self.budget.steps, epochs=self.budget.epochs)
        return report(learner, learner.state(), fit), private

    def merge(self, server: Server, updates: Iterable[Update]) -> Server:
        """Average name by name, and fold what the averages' product lacks."""
        updates = sorted(updates, key=lambda update: update.client)
        if not updates:
            return server
        sent, weights = [pairs(update.adapter) for update in updates], client_weights(updates, self.weights)
        exact = {layer: mean_product([one[layer] for one in sent], weights) for layer in sent[0]}
        return fold_rest(server, mean(updates, server.adapter, self.weights), exact)

    def serve(self, server: Server, private: Private) -> Serving:
        """The global adapter on the folded weights."""
        return serve_folded(server)
