r"""FlexLoRA: the mean of the clients' products is decomposed anew, and everyone gets the strongest components.

Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources" (NeurIPS
2024, arXiv 2402.11505).

=====================================  =========================================================
paper                                  here
=====================================  =========================================================
:math:`r_i`                            ``ranks_of(server)[client]``
:math:`W_i = B_i A_i`                  `lit_fed.core.products.product`
:math:`W_g = \sum_i n_i W_i / n`       ``exact``, held as stacked factors
:math:`W_g = U \Sigma V^T`             ``exact.best(rank)``
=====================================  =========================================================

.. math:: \bar B = U_r \Sigma_r, \quad \bar A = V_r^T, \qquad
          \text{client } i \text{ gets } \bar B[:, :r_i],\ \bar A[:r_i].

Aggregation error: what the mean has beyond the module's rank r; no adapter of that rank has a smaller one. It is 0 up
to rounding if the ranks of the cohort together are at most r. The metric ``aggregation_error`` says how much it is.

Assumption: the singular values go to B, so that a component of strength zero has a row of A left and can be trained.
Assumption: if the ranks of the cohort together are below r, the components left over keep their rows of A, and B = 0.
Assumption: served is the global adapter at full rank r, not the full-size mean.
Assumption: what is no LoRA factor is averaged as in FedAvg.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch

from lit_fed.algorithms.low_rank import LowRank, mean_of_rest
from lit_fed.core.aggregate import client_weights
from lit_fed.core.names import LORA_A, LORA_B
from lit_fed.core.products import aggregation_error, mean_product, product
from lit_fed.core.rank import pairs
from lit_fed.core.types import Server, Update


class FlexLoRA(LowRank):
    """Average full-size products, decompose, hand out the strongest components.

    Args:
        ranks: The LoRA rank a client can hold: a rank (``4``), or a fraction of the module's (``0.5``). One for all, a
            list for the clients or for the domains in sorted order, or a mapping from client or domain.
        shuffle_ranks: Deal a list to clients or domains in an order drawn with the seed, so that a rank does not always
            mean the same domain.
        weights: ``"examples"`` weighs a client by its training examples, ``"uniform"`` all alike.
        local_steps: Optimizer steps of a client's turn, or
        local_epochs: its passes over the client's training data. Give exactly one; neither means one epoch.
    """

    def merge(self, server: Server, updates: Iterable[Update]) -> Server:
        """The best approximation of the mean product at the module's rank."""
        updates = sorted(updates, key=lambda update: update.client)
        if not updates:
            return server
        sent, weights = [pairs(update.adapter) for update in updates], client_weights(updates, self.weights)
        adapter = mean_of_rest(updates, server.adapter, self.weights)
        exact = {}
        for layer, (a, b) in pairs(server.adapter).items():
            exact[layer] = mean_product([one[layer] for one in sent], weights)
            best = exact[layer].best(a.shape[0])
            over = a.flatten(1)[len(best.right) :]
            new_a = torch.cat([best.right, over.double()])
            new_b = torch.cat([best.left, torch.zeros(len(b), len(over)).double()], dim=1)
            adapter[f"{layer}.{LORA_A}"] = new_a.reshape(a.shape).to(a.dtype)
            adapter[f"{layer}.{LORA_B}"] = new_b.reshape(b.shape).to(b.dtype)
        adapter = {name: adapter[name] for name in server.adapter}
        start = {layer: product(factors) for layer, factors in pairs(adapter).items()}
        return replace(server, adapter=adapter, metrics={"aggregation_error": aggregation_error(start, exact)})
