r"""FedRoD: a shared model that is trained to be fair to all classes, and a private head that knows its client.

Chen and Chao, "On Bridging Generic and Personalized Federated Learning for Image Classification" (ICLR 2022),
Section 4: with features :math:`z = f(x; \theta)`, generic head :math:`\psi` and private head :math:`\phi_m`,

.. math::
    \mathrm{BSM} &= -\log \frac{N_{m,y} e^{g_y(z; \psi)}}{\sum_c N_{m,c} e^{g_c(z; \psi)}}
        \qquad \text{over } \theta, \psi \\
    \mathrm{CE} &= -\log \mathrm{softmax}_y\big(g(z; \psi) + h(z; \phi_m)\big) \qquad \text{over } \phi_m
        \text{ alone, } z \text{ and } g \text{ detached}

===============================  ==========================================================
paper                            here
===============================  ==========================================================
:math:`\theta, \psi`             ``task.adapter``: LoRA, and the task head
:math:`\phi_m`                   ``private["head"]``: the head of an exit after the last block
:math:`N_{m,c}`                  ``private["counts"][c]``
:math:`g, h`                     ``step.logits()``, ``step.exit_logits([depth])``
===============================  ==========================================================

Balanced softmax adds :math:`\log N_{m,c}` to the generic logits in training; a class that the client does not have has
probability 0 there, so that a client of a single class teaches body and generic head nothing. A client predicts with
the sum of both heads' logits, a new client with the generic head.

Each head is evaluated in a pass of its own, so that a head of any architecture can have a private copy: a training step
is two forward passes and one backward pass, a prediction two passes.

Assumption: the private head starts as a copy of the generic one, with its size (the paper also has one that is made by
a hypernetwork from the class counts).
Assumption: where there is dropout, the two passes draw it independently.
Assumption: both losses are in one step, with one optimizer; gradient clipping sees both.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lit_fed.algorithms.base import GLOBAL, Learner, Objective, Serving, Step, report
from lit_fed.algorithms.fedavg import FedAvg
from lit_fed.core.aggregate import Weights
from lit_fed.core.names import exit_of
from lit_fed.core.types import AdapterState, Client, ClientId, Private, Server, Setting, Task, Update


class FedRoD(FedAvg):
    """FedAvg with balanced softmax, and a private head on the same features.

    The module must offer ``logits(batch)`` (B, C) and ``targets(batch)`` (B), and have a task head that is trained:
    one that PEFT holds, or that its ``head_module`` returns. Its evaluation must ask ``self.logits(batch)``.

    Args:
        weights: ``"examples"`` weighs a client by its training examples, ``"uniform"`` all alike.
        local_steps: Optimizer steps of a client's turn, or
        local_epochs: its passes over the client's training data. Give exactly one; neither means one epoch.
    """

    needs = frozenset({"logits", "targets"})

    def __init__(
        self, weights: Weights = "examples", local_steps: int | None = None, local_epochs: int | None = None
    ) -> None:
        super().__init__(weights, local_steps, local_epochs)

    def problems(self, setting: Setting) -> list[str]:
        """There is a head to copy, and blocks to find its place by."""
        found = super().problems(setting)
        if not setting.model.has_head:
            found.append(
                "FedRoD gives every client a copy of the task head, but the model has none that is trained. Use a "
                "classifier; a module of your own returns its head from a method `head_module`."
            )
        if not setting.model.num_blocks:
            found.append(
                "FedRoD puts a second head after the last transformer block, but no blocks were found in the model. "
                "Use a transformer whose blocks are equal, or FedPer."
            )
        return found

    def exits(self, setting: Setting) -> tuple[int, ...]:
        """One, after the last block."""
        return (setting.model.num_blocks,)

    def init(self, adapter: AdapterState, setting: Setting) -> Server:
        """The private head's initial value stays in the global adapter, and is never changed or sent."""
        return Server(round=0, adapter=adapter, state={"depth": setting.model.num_blocks})

    def plan(self, server: Server, cohort: Sequence[Client]) -> dict[ClientId, Task]:
        """Everyone gets body and generic head."""
        shared = {name: tensor for name, tensor in server.adapter.items() if exit_of(name) is None}
        task = Task(shared, {"depth": server.state["depth"]})
        return {client.id: task for client in cohort}

    def local(self, learner: Learner, task: Task, private: Private) -> tuple[Update, Private]:
        """Train all three; the private head stays."""
        counts = private["counts"] if "counts" in private else class_counts(learner.targets())
        learner.load({**task.adapter, **private.get("head", {})})
        objective = decoupled(counts, task.config["depth"])
        fit = learner.fit(steps=self.budget.steps, epochs=self.budget.epochs, objective=objective)
        state = learner.state()
        shared = {name: state.pop(name) for name in task.adapter}
        return report(learner, shared, fit), {"counts": counts, "head": state}

    def serve(self, server: Server, private: Private) -> Serving:
        """Both heads for a client, the generic one for a new client."""
        if "head" not in private:
            return Serving({GLOBAL: server.adapter})
        return Serving({GLOBAL: {**server.adapter, **private["head"]}}, predict=BothHeads(server.state["depth"]))


def class_counts(targets: Tensor) -> list[int]:
    """How many examples there are of each class, up to the largest there is; negative targets count for nothing."""
    counts: list[int] = torch.bincount(targets[targets >= 0].flatten()).tolist()
    return counts


def decoupled(counts: Sequence[int], depth: int) -> Objective:
    """Balanced softmax for body and generic head, cross-entropy of the sum for the private head.

    Args:
        counts: The client's training examples of each class; none of classes beyond.
        depth: Where the private head is.
    """

    def objective(step: Step) -> Tensor:
        targets, generic = step.targets(), step.logits().float()
        with _held(p for name, p in step.parameters.items() if exit_of(name) is None):
            own = step.exit_logits([depth])[0].float()
        held = torch.zeros(generic.shape[-1], device=generic.device)
        held[: len(counts)] = torch.tensor(counts, dtype=held.dtype, device=held.device)
        return cross_entropy(generic + held.log(), targets) + cross_entropy(generic.detach() + own, targets)

    return objective


@dataclass(frozen=True)
class BothHeads:
    """How a client predicts: with the sum of the logits of the generic and of the private head.

    Args:
        depth: Where the private head is.
    """

    depth: int

    def __call__(self, step: Step) -> Tensor:
        """The sum, (B, ..., C)."""
        return step.logits() + step.exit_logits([self.depth])[0]


@contextmanager
def _held(parameters: Iterable[Tensor]) -> Iterator[None]:
    """A scope in which these get no gradient from what is computed."""
    chosen = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in chosen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in chosen:
            parameter.requires_grad_(True)
