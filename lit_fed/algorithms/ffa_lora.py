r"""FFA-LoRA: A stays what it was at first, everywhere; only B is trained and averaged, and that is exact.

Sun et al., "Improving LoRA in Privacy-preserving Federated Learning" (ICLR 2024, arXiv 2403.12313).

=====================  ==================================================
paper                  here
=====================  ==================================================
:math:`A_0`            A in ``server.adapter``; no task and no update has it
:math:`B`              B in ``server.adapter``
:math:`n_k / n`        ``weights``
=====================  ==================================================

.. math:: \sum_k p_k (B_k A_0) = \Big( \sum_k p_k B_k \Big) A_0.

Aggregation error: none but rounding to float32; the metric ``aggregation_error`` says how much.

Assumption: everyone has the initial A from the model's seed, so that it never travels.
Assumption: what is no LoRA factor is trained and averaged as in FedAvg.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import Tensor

from lit_fed.algorithms.base import Algorithm, Learner, report
from lit_fed.algorithms.low_rank import lora_problems
from lit_fed.core.aggregate import Weights, client_weights, mean
from lit_fed.core.errors import ConfigError
from lit_fed.core.names import factor_of
from lit_fed.core.products import aggregation_error, mean_product, product
from lit_fed.core.rank import check_pairs, pairs
from lit_fed.core.types import AdapterState, Client, ClientId, Private, Server, Setting, Task, Update


class FFALoRA(Algorithm):
    """Train B and the head at every client of the cohort, then average.

    Args:
        weights: ``"examples"`` weighs a client by its training examples, ``"uniform"`` all alike.
        local_steps: Optimizer steps of a client's turn, or
        local_epochs: its passes over the client's training data. Give exactly one; neither means one epoch.
    """

    def __init__(
        self, weights: Weights = "examples", local_steps: int | None = None, local_epochs: int | None = None
    ) -> None:
        super().__init__(local_steps, local_epochs)
        self.weights: Weights = weights

    def problems(self, setting: Setting) -> list[str]:
        """Without LoRA there is no A to freeze."""
        return super().problems(setting) + lora_problems(self, setting)

    def init(self, adapter: AdapterState, setting: Setting) -> Server:
        """The server; a frozen A must let something through."""
        check_pairs(adapter, setting.model.rank)
        closed = [layer for layer, (a, _) in pairs(adapter).items() if not a.is_meta and not a.any()]
        if closed:
            raise ConfigError(
                f"`algorithm: FFALoRA` freezes A at its initial value, which is 0 in {closed[:3]} (as for embeddings):"
                " nothing would be learned there. Leave these out of `lora.target_modules`."
            )
        return super().init(adapter, setting)

    def plan(self, server: Server, cohort: Sequence[Client]) -> dict[ClientId, Task]:
        """Everyone gets the global adapter without A."""
        task = Task(_without_a(server.adapter))
        return {client.id: task for client in cohort}

    def local(self, learner: Learner, task: Task, private: Private) -> tuple[Update, Private]:
        """Train B and what is no LoRA factor."""
        learner.load(task.adapter)
        learner.activate(where=_is_trained)
        fit = learner.fit(steps=self.budget.steps, epochs=self.budget.epochs)
        return report(learner, _without_a(learner.state()), fit), private

    def merge(self, server: Server, updates: Iterable[Update]) -> Server:
        """Average what came back, name by name; A keeps its value."""
        updates = sorted(updates, key=lambda update: update.client)
        if not updates:
            return server
        adapter = mean(updates, server.adapter, self.weights)
        sent = [pairs({**server.adapter, **update.adapter}) for update in updates]
        weights = client_weights(updates, self.weights)
        exact = {layer: mean_product([one[layer] for one in sent], weights) for layer in sent[0]}
        start = {layer: product(factors) for layer, factors in pairs(adapter).items()}
        return replace(server, adapter=adapter, metrics={"aggregation_error": aggregation_error(start, exact)})


def _is_trained(name: str) -> bool:
    return factor_of(name) != "A"


def _without_a(adapter: AdapterState) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in adapter.items() if _is_trained(name)}
