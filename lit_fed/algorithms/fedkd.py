r"""FedKD: a mentor that stays and a mentee that travels teach one another; what the mentee learned is sent as factors.

Wu et al., "Communication-efficient federated learning via knowledge distillation" (Nature Communications 2022). For
mentor t and mentee s, with probabilities y, hidden states H and task losses :math:`L^c`:

.. math::
    L_t &= L^c_t + \frac{\mathrm{KL}(y_s \,\|\, y_t) + \mathrm{MSE}(H_t, W^h H_s)}{L^c_t + L^c_s} \\
    L_s &= L^c_s + \frac{\mathrm{KL}(y_t \,\|\, y_s) + \mathrm{MSE}(H_t, W^h H_s)}{L^c_t + L^c_s}

and the mentee's update is sent by the singular directions that hold a share T of its energy, which rises from
:math:`T_{start}` to :math:`T_{end}`.

===============================  ==========================================================
paper                            here
===============================  ==========================================================
mentor                           slot ``"local"``, ``private["mentor"]``
mentee                           slot ``"global"``, ``task.adapter``
:math:`T_{start}, T_{end}`       ``energy_start``, ``energy_end``
===============================  ==========================================================

Assumption: mentor and mentee are two adapters of one frozen model, of one rank and with a head each. So hidden states
have one width, and :math:`W^h` is the identity. (In the paper the mentor is a larger model.)
Assumption: H is what the head sees; attention maps, which the paper also matches, are left out.
Assumption: each loss trains its own adapter: what it learns from is detached, and so is the adaptive weight.
Assumption: both start as the same initial adapter and have the same optimizer. So in the first round there is nothing
that one could teach the other, and what is sent then is what the mentor learned, too.
Assumption: the share rises over ``ramp_rounds`` rounds and then stays; each tensor (A, B, head) is one matrix, and goes
whole if factors are no smaller. Low ranks leave little to be saved: the paper compresses full matrices.
Assumption: the mentee goes down whole, not as a compressed update: a client that sat out has missed some.
Assumption: a client predicts with its mentor, a new client with the mentee.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, mse_loss

from lit_fed.algorithms.base import GLOBAL, LOCAL, Learner, Objective, Serving, Step, report
from lit_fed.algorithms.fedavg import FedAvg
from lit_fed.core.aggregate import Weights, mean
from lit_fed.core.compress import compress, decompress
from lit_fed.core.tree import map_states, num_bytes
from lit_fed.core.types import Private, Server, Setting, Task, Update


class FedKD(FedAvg):
    """Mutual distillation between a private and a shared adapter.

    The module must offer ``logits(batch)`` (B, C), ``features(batch)`` (B, D) and ``targets(batch)`` (B). A step takes
    two forward passes, or four with `hidden`.

    Args:
        energy_start: Share of the update's energy that is sent in the first round, in (0, 1].
        energy_end: The same after `ramp_rounds` rounds, from `energy_start` to 1.
        ramp_rounds: Rounds in which it rises, >= 0; 0: from the first.
        hidden: Whether hidden states are matched, too.
        weights: ``"examples"`` weighs a client by its training examples, ``"uniform"`` all alike.
        local_steps: Optimizer steps of a client's turn, or
        local_epochs: its passes over the client's training data. Give exactly one; neither means one epoch.
    """

    slots = (GLOBAL, LOCAL)
    needs = frozenset({"logits", "features", "targets"})

    def __init__(
        self,
        energy_start: float = 0.95,
        energy_end: float = 0.98,
        ramp_rounds: int = 10,
        hidden: bool = True,
        weights: Weights = "examples",
        local_steps: int | None = None,
        local_epochs: int | None = None,
    ) -> None:
        super().__init__(weights, local_steps, local_epochs)
        self.energy_start, self.energy_end, self.ramp_rounds = energy_start, energy_end, ramp_rounds
        self.hidden = hidden

    def problems(self, setting: Setting) -> list[str]:
        """Shares are shares, and there are classes to be sure or unsure of."""
        found = super().problems(setting)
        if not 0 < self.energy_start <= self.energy_end <= 1:
            found.append(
                "Expected 0 < `algorithm.energy_start` <= `algorithm.energy_end` <= 1, but got "
                f"{self.energy_start} and {self.energy_end}."
            )
        if self.ramp_rounds < 0:
            found.append(f"Expected `algorithm.ramp_rounds` to be >= 0, but got {self.ramp_rounds}.")
        if not setting.model.has_head:
            found.append("FedKD distils between classifiers, but the model has no task head. Use a classifier.")
        return found

    def energy(self, round: int) -> float:
        """The share of a round, counted from 0."""
        progress = min(1.0, round / self.ramp_rounds) if self.ramp_rounds else 1.0
        return self.energy_start + (self.energy_end - self.energy_start) * progress

    def local(self, learner: Learner, task: Task, private: Private) -> tuple[Update, Private]:
        """Train both; send what the mentee learned."""
        learner.load(task.adapter)
        learner.load(private.get("mentor", {}), LOCAL)
        learner.activate(GLOBAL, beside={LOCAL: None})
        objective = mutual_distillation(self.hidden)
        fit = learner.fit(steps=self.budget.steps, epochs=self.budget.epochs, objective=objective)
        learned = map_states(torch.sub, learner.state(), task.adapter)
        sent = compress(learned, self.energy(learner.round))
        return report(learner, sent, fit), {"mentor": learner.state(LOCAL)}

    def merge(self, server: Server, updates: Iterable[Update]) -> Server:
        """Add the mean of what the mentees learned."""
        updates = list(updates)
        learned = [replace(update, adapter=decompress(update.adapter, server.adapter)) for update in updates]
        nothing = map_states(torch.zeros_like, server.adapter)
        adapter = map_states(torch.add, server.adapter, mean(learned, nothing, self.weights))
        whole = num_bytes(server.adapter) * len(updates)
        sent = sum(num_bytes(update.adapter) for update in updates)
        return replace(server, adapter=adapter, metrics={"upload_fraction": sent / whole} if whole else {})

    def serve(self, server: Server, private: Private) -> Serving:
        """A client predicts with its mentor."""
        return Serving({GLOBAL: private.get("mentor", server.adapter)})


def mutual_distillation(hidden: bool) -> Objective:
    """The sum of the losses of mentor and mentee, each of which trains its own.

    Args:
        hidden: Whether hidden states are matched, too.
    """

    def objective(step: Step) -> Tensor:
        targets = step.targets()
        mentee, mentor = (step.logits(slot).float() for slot in (GLOBAL, LOCAL))
        losses = cross_entropy(mentee, targets) + cross_entropy(mentor, targets)
        distances = _kl(mentor.detach(), mentee) + _kl(mentee.detach(), mentor)
        if hidden:
            seen, known = (step.features(slot).float() for slot in (GLOBAL, LOCAL))
            distances = distances + mse_loss(seen, known.detach()) + mse_loss(known, seen.detach())
        return losses + distances / losses.detach().clamp(min=torch.finfo(losses.dtype).eps)

    return objective


def _kl(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean over rows of KL(teacher || student), from logits of shape (B, C)."""
    return kl_div(log_softmax(student, -1), log_softmax(teacher, -1), reduction="batchmean", log_target=True)
