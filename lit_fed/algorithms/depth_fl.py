r"""DepthFL: a client trains the first blocks of the model, with a classifier at every depth that somebody stops at.

Kim et al., "DepthFL: Depthwise Federated Learning for Heterogeneous Clients" (ICLR 2023).

==================================  =====================================================================
paper                               here
==================================  =====================================================================
:math:`c_k`                         ``held[client]``, from ``capacities``
classifiers, depths                 ``depths``: the different capacities; a client has those up to its own
:math:`p_o`                         softmax of ``step.exit_logits(...)[o]``
:math:`w(t)`                        ``ramp(round, ramp_rounds)``
:math:`n`                           classifiers of the client
==================================  =====================================================================

The classifiers of a client teach one another (self-distillation, temperature 1, no gradient to the teacher):

.. math:: L_k = \sum_o \mathrm{CE}(p_o, y) + \frac{w(t)}{n - 1} \sum_{o \ne q} \mathrm{KL}(p_q \,\|\, p_o),
          \qquad w(t) = e^{-5 (1 - t / T)^2} \text{ for } t < T, \text{ then } 1

Each block and each classifier is averaged over the clients that hold it. The deepest classifier is the task head, every
other one a head of its own that starts as a copy of the task head. (In the code of FedRA all clients share the last
head, whatever their depth, and :math:`T = 500` in 100 rounds leaves out the distillation.)

Assumption: served is the model as deep as the deepest client, with the mean of its classifiers' logits
(``ensemble=False``: the deepest alone).
Assumption: the ramp is counted in rounds, :math:`T` = ``ramp_rounds``; about three tenths of all rounds, as
300 of 1000 in published code.
Assumption: no FedDyn, which the paper combines the method with.
Assumption: dynamic capacities are drawn from those of all clients, so that there is a classifier for each.
Assumption: a memory budget is held against a step without the classifiers at lower depths, which take little.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from lit_fed.algorithms import capacities as capacity
from lit_fed.algorithms.base import GLOBAL, Learner, Objective, Serving, Step, report
from lit_fed.algorithms.capacities import Capacities
from lit_fed.algorithms.weak_clients import WeakClients, capacities_of, prefixes
from lit_fed.core.aggregate import Weights, mean
from lit_fed.core.names import exit_of, is_head, restrict
from lit_fed.core.types import AdapterState, Client, ClientId, Private, Server, Setting, Task, Update


class DepthFL(WeakClients):
    """Prefixes of the model with a classifier at each depth; the classifiers of a client teach one another.

    The module must offer ``logits(batch)`` (B, C) and ``targets(batch)`` (B), and have a task head that is trained:
    one that PEFT holds, or that its ``head_module`` returns. Its evaluation must ask ``self.logits(batch)``.

    Args:
        capacities: How much of the model a client can hold: blocks (``6``), a fraction of them (``0.5``), or the memory
            of a training step (``"512 MB"``: what a block takes is measured). One for all, a list for the clients or
            for the domains in sorted order, or a mapping from client or domain.
        ramp_rounds: Rounds until distillation counts in full, >= 0; 0: from the first.
        ensemble: Whether the mean of all classifiers predicts, or the deepest alone.
        shuffle_capacities: Deal a list to clients or domains in an order drawn with the seed, so that capacity does not
            always mean the same domain.
        dynamic: Redraw every round: each client of the cohort gets one of all clients' capacities, uniformly.
        weights: ``"uniform"`` or ``"examples"``.
        local_steps: Optimizer steps of a client's turn, or
        local_epochs: its passes over the client's training data. Give exactly one; neither means one epoch.
    """

    needs = frozenset({"logits", "targets"})

    def __init__(
        self,
        capacities: Capacities = 0.5,
        ramp_rounds: int = 10,
        ensemble: bool = True,
        shuffle_capacities: bool = False,
        dynamic: bool = False,
        weights: Weights = "uniform",
        local_steps: int | None = None,
        local_epochs: int | None = None,
    ) -> None:
        super().__init__(capacities, shuffle_capacities, dynamic, weights, local_steps, local_epochs)
        self.ramp_rounds, self.ensemble = ramp_rounds, ensemble

    def problems(self, setting: Setting) -> list[str]:
        """There is a head to copy, and the ramp does not end before it begins."""
        found = super().problems(setting)
        if not setting.model.has_head:
            found.append(
                "DepthFL gives every depth a copy of the task head, but the model has none that is trained. Use a "
                "classifier; a module of your own returns its head from a method `head_module`."
            )
        if self.ramp_rounds < 0:
            found.append(f"Expected `algorithm.ramp_rounds` to be >= 0, but got {self.ramp_rounds}.")
        return found

    def exits(self, setting: Setting) -> tuple[int, ...]:
        """All depths but the deepest, whose classifier is the task head."""
        held = capacity.resolve(self.capacities, setting, self.shuffle_capacities)
        return tuple(sorted(set(held.values())))[:-1]

    def plan(self, server: Server, cohort: Sequence[Client]) -> dict[ClientId, Task]:
        """The first blocks, as many as a client can hold, and the classifiers up to there."""
        depths = _depths(server)
        tasks = {}
        for client, blocks in prefixes(self.held(server, [client.id for client in cohort])).items():
            own = [depth for depth in depths if depth <= len(blocks)]
            tasks[client] = Task(_owned(server.adapter, blocks, own, depths[-1]), {"exits": own}, blocks)
        return tasks

    def local(self, learner: Learner, task: Task, private: Private) -> tuple[Update, Private]:
        """Train blocks and classifiers together."""
        learner.select_blocks(task.blocks)
        learner.load(task.adapter)
        learner.activate(where=lambda name: name in task.adapter)  # no classifier beyond the client's depth
        objective = self_distillation(task.config["exits"], ramp(learner.round, self.ramp_rounds))
        fit = learner.fit(steps=self.budget.steps, epochs=self.budget.epochs, objective=objective)
        state = learner.state()
        return report(learner, {name: state[name] for name in task.adapter}, fit), private

    def merge(self, server: Server, updates: Iterable[Update]) -> Server:
        """Average each block and each classifier over its owners, all else over the cohort."""
        return replace(server, adapter=mean(updates, server.adapter, self.weights))

    def serve(self, server: Server, private: Private) -> Serving:
        """As deep as the deepest client."""
        depths = _depths(server)
        several = self.ensemble and len(depths) > 1
        return Serving({GLOBAL: server.adapter}, tuple(range(depths[-1])), Ensemble(depths) if several else None)


@dataclass(frozen=True)
class Ensemble:
    """How everybody predicts: with the mean of the logits of several classifiers.

    Args:
        depths: Where they are, in blocks.
    """

    depths: Sequence[int]

    def __call__(self, step: Step) -> Tensor:
        """The mean, (B, ..., C)."""
        return torch.stack(step.exit_logits(self.depths)).mean(0)


def ramp(round: int, ramp_rounds: int) -> float:
    """The Gaussian ramp from ``exp(-5)`` to 1."""
    return math.exp(-5 * (1 - round / ramp_rounds) ** 2) if round < ramp_rounds else 1.0


def self_distillation(depths: Sequence[int], weight: float) -> Objective:
    """The sum of the exits' cross-entropies, and `weight` times what they teach one another.

    A mean over the batch, in nats.
    """

    def objective(step: Step) -> Tensor:
        logits, targets = [exit.float() for exit in step.exit_logits(depths)], step.targets()
        loss = torch.stack([cross_entropy(exit, targets) for exit in logits]).sum()
        if len(logits) == 1:
            return loss
        logs = [log_softmax(exit, dim=-1) for exit in logits]
        lessons = [
            kl_div(pupil, teacher.detach(), reduction="batchmean", log_target=True)
            for pupil in logs
            for teacher in logs
            if teacher is not pupil
        ]
        return loss + weight / (len(logits) - 1) * torch.stack(lessons).sum()

    return objective


def _depths(server: Server) -> list[int]:
    """The different capacities, ascending."""
    return sorted(set(capacities_of(server).values()))


def _owned(adapter: AdapterState, blocks: Sequence[int], exits: Sequence[int], deepest: int) -> dict[str, Tensor]:
    """The part of an adapter that a client with these blocks and exits has; the deepest exit is the task head."""
    return {
        name: tensor
        for name, tensor in restrict(adapter, blocks).items()
        if (deepest if is_head(name) else exit_of(name)) in {None, *exits}
    }
