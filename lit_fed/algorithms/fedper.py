r"""FedPer: the body of the model is shared, every client has a head of its own, and trains both at once.

Arivazhagan et al., "Federated Learning with Personalization Layers" (arXiv 1912.00818), Algorithms 1 and 2.

===============================  ================================================================
paper                            here
===============================  ================================================================
:math:`W_B`, base layers         the body: ``task.adapter``
:math:`W_{P_j}`, personal        the head: ``private["head"]``
:math:`K_P`                      ``head_blocks``, counted in blocks beside the task head
===============================  ================================================================

.. math:: (W_{B,j}, W_{P_j}) \leftarrow \mathrm{SGD}_j(W_B, W_{P_j}), \qquad
          W_B \leftarrow \sum_j \frac{n_j}{\sum_i n_i} W_{B,j}

A head crosses the network in no direction: every client starts with that of the module.

Assumption: with LoRA the body is all LoRA factors, and the head is the task head. With ``head_blocks`` the factors of
the last blocks belong to the head, too; a model without a task head needs that.
Assumption: a new client predicts with the head that everybody started with, which is not trained.
"""

from collections.abc import Collection, Sequence

from lit_fed.algorithms.base import GLOBAL, Learner, Serving, report
from lit_fed.algorithms.fedavg import FedAvg
from lit_fed.core.aggregate import Weights
from lit_fed.core.errors import ConfigError
from lit_fed.core.names import block_of, is_head
from lit_fed.core.types import AdapterState, Client, ClientId, FitResult, Private, Server, Setting, Task, Update


class FedPer(FedAvg):
    """FedAvg of the body; the head stays with its client.

    Args:
        head_blocks: Last blocks whose LoRA belongs to the head, beside the task head; 0 for none.
        weights: ``"examples"`` weighs a client by its training examples, ``"uniform"`` all alike.
        local_steps: Optimizer steps of a client's turn, or
        local_epochs: its passes over the client's training data. Give exactly one; neither means one epoch.
    """

    def __init__(
        self,
        head_blocks: int = 0,
        weights: Weights = "examples",
        local_steps: int | None = None,
        local_epochs: int | None = None,
    ) -> None:
        super().__init__(weights, local_steps, local_epochs)
        self.head_blocks = head_blocks

    def problems(self, setting: Setting) -> list[str]:
        """There is a head to keep, and a body to share."""
        found, model, name = super().problems(setting), setting.model, type(self).__name__
        if not model.has_head and self.head_blocks == 0:
            found.append(
                f"{name} keeps the task head at the client, but the model has none. Set `algorithm.head_blocks` to the "
                "number of last blocks whose LoRA is to be the head, or use FedAvg."
            )
        if not 0 <= self.head_blocks <= max(model.num_blocks - 1, 0):
            found.append(
                f"Expected `algorithm.head_blocks` to be from 0 to {max(model.num_blocks - 1, 0)}, so that a block is "
                f"left to share, but got {self.head_blocks}."
            )
        return found

    def init(self, adapter: AdapterState, setting: Setting) -> Server:
        """Note down which tensors are the head.

        Raises:
            ConfigError: If nothing is left to share.
        """
        first = setting.model.num_blocks - self.head_blocks
        head = [name for name in adapter if is_head(name) or (block_of(name) or 0) >= max(first, 1)]
        if len(head) == len(adapter):
            raise ConfigError(
                f"{type(self).__name__} shares all that is trained but the head, and that is nothing. Give the model"
                " LoRA (`model.lora`), lower `algorithm.head_blocks`, or use Local."
            )
        return Server(round=0, adapter=adapter, state={"head": head})

    def plan(self, server: Server, cohort: Sequence[Client]) -> dict[ClientId, Task]:
        """Everyone gets the body."""
        head = set(server.state["head"])
        task = Task({name: tensor for name, tensor in server.adapter.items() if name not in head})
        return {client.id: task for client in cohort}

    def local(self, learner: Learner, task: Task, private: Private) -> tuple[Update, Private]:
        """Train the body with the client's own head; send the body."""
        learner.load({**task.adapter, **private.get("head", {})})
        fit = self.fit(learner, task.adapter)
        state = learner.state()
        body = {name: state.pop(name) for name in task.adapter}
        return report(learner, body, fit), {"head": state}

    def fit(self, learner: Learner, body: Collection[str]) -> FitResult:
        """Both at once."""
        return learner.fit(steps=self.budget.steps, epochs=self.budget.epochs)

    def serve(self, server: Server, private: Private) -> Serving:
        """The body with the client's own head."""
        return Serving({GLOBAL: {**server.adapter, **private.get("head", {})}})
