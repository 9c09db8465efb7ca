r"""FLoRA: clients' factors are stacked, their product goes into the frozen weights, and LoRA begins anew.

Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations" (NeurIPS 2024,
arXiv 2409.05976).

=====================================  ==========================================================
paper                                  here
=====================================  ==========================================================
:math:`r_k`                            ``ranks_of(server)[client]``
:math:`p_k = |D_k| / |D|`              ``weights``
:math:`A_1 \oplus \dots \oplus A_K`    ``mean_product``, which stacks
:math:`W^t - W^0`                      ``deltas_of(server)``
=====================================  ==========================================================

.. math:: W \leftarrow W + \sum_k p_k B_k A_k = W + [p_1 B_1, \dots, p_K B_K]\, [A_1; \dots; A_K],
          \qquad B \leftarrow 0.

Aggregation error: none but rounding to float32; the metric ``aggregation_error`` says how much.

A client that keeps its folded weights would need the stacked factors of the last round, as published: the sum of the
ranks of its cohort times (m + n) numbers for a layer of shape (m, n). Tasks here carry the dense sum, see
`lit_fed.algorithms.folded`.

Assumption: A begins anew with the same values at every client, uniform in :math:`\pm 1 / \sqrt{n}` as PEFT's default
(the released code draws them at each client). They travel, and so does B = 0.
Assumption: what is no LoRA factor is averaged as in FedAvg.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lit_fed.algorithms.base import Learner, Serving
from lit_fed.algorithms.folded import fold_rest, serve_folded, unpack, with_deltas
from lit_fed.algorithms.low_rank import LowRank, mean_of_rest
from lit_fed.core.aggregate import client_weights
from lit_fed.core.names import factor_of
from lit_fed.core.products import mean_product
from lit_fed.core.rank import pairs
from lit_fed.core.seeding import generator
from lit_fed.core.types import Client, ClientId, Private, Server, Task, Update


class FLoRA(LowRank):
    """Stack the factors, fold their product into the frozen weights, begin anew.

    Args:
        ranks: The LoRA rank a client can hold: a rank (``4``), or a fraction of the module's (``0.5``). One for all, a
            list for the clients or for the domains in sorted order, or a mapping from client or domain.
        shuffle_ranks: Deal a list to clients or domains in an order drawn with the seed, so that a rank does not always
            mean the same domain.
        weights: ``"examples"`` weighs a client by its training examples, ``"uniform"`` all alike.
        local_steps: Optimizer steps of a client's turn, or
        local_epochs: its passes over the client's training data. Give exactly one; neither means one epoch.
    """

    folds = True

    def plan(self, server: Server, cohort: Sequence[Client]) -> dict[ClientId, Task]:
        """Everyone gets what has been folded, and the first components of the fresh adapter."""
        return with_deltas(super().plan(server, cohort), server)

    def local(self, learner: Learner, task: Task, private: Private) -> tuple[Update, Private]:
        """Fold, then train."""
        return super().local(learner, unpack(learner, task), private)

    def merge(self, server: Server, updates: Iterable[Update]) -> Server:
        """Fold the mean of the products, and draw a fresh adapter."""
        updates = sorted(updates, key=lambda update: update.client)
        if not updates:
            return server
        sent, weights = [pairs(update.adapter) for update in updates], client_weights(updates, self.weights)
        exact = {layer: mean_product([one[layer] for one in sent], weights) for layer in sent[0]}
        fresh = {name: _fresh(name, old, server) for name, old in server.adapter.items() if factor_of(name)}
        adapter = fresh | mean_of_rest(updates, server.adapter, self.weights)
        return fold_rest(server, {name: adapter[name] for name in server.adapter}, exact)

    def serve(self, server: Server, private: Private) -> Serving:
        """The folded weights."""
        return serve_folded(server)


def _fresh(name: str, old: Tensor, server: Server) -> Tensor:
    if factor_of(name) == "B":
        return torch.zeros_like(old)
    random = generator(server.seed, "fresh", server.round, name)
    return (2 * torch.rand(old.shape, generator=random, dtype=old.dtype) - 1) / math.sqrt(old[0].numel())
