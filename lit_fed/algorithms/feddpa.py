r"""FedDPA: a global adapter that travels and a local one that stays, weighed anew for each example to predict.

Yang et al., "Dual-Personalizing Adapter for Federated Foundation Models" (NeurIPS 2024, arXiv 2403.19211). At hand were
its abstract, the authors' code and what others quote of Algorithm 1. With S of the client's training examples
:math:`x_1, \dots, x_S`, an example x is predicted with

.. math::
    h = W x + (1 - \alpha_x) \, \Delta W_g x + \alpha_x \, \Delta W_l x, \qquad
    \alpha_x = \lambda \, \frac{1}{S} \sum_{i=1}^S \cos(u(x), u(x_i))

in every layer with LoRA, u the features.

===============================  ==========================================================
paper                            here
===============================  ==========================================================
global, local adapter            slots ``"global"`` and ``"local"``, ``private["local"]``
:math:`\alpha` in training       ``alpha``
:math:`\lambda, S`               ``scale``, ``instances``
:math:`u(x_i)`                   ``private["references"]``
FedDPA-F, FedDPA-T               ``variant``
===============================  ==========================================================

- F (fine-tuned): FedAvg for ``federated_rounds``. In the round after them the local adapter starts as the global one
  and is tuned alone; nothing comes up. In rounds beyond, clients that have none yet follow; the others sit out.
- T (trained): in every round the global adapter is trained as in FedAvg, then the local one beside a frozen global one,
  in the mixture above with a fixed weight :math:`\alpha` for all examples.

Known: the schedules, the sequence of T's two phases, the rule and its defaults :math:`\lambda` = 0.5, S = 5,
:math:`\alpha` = 0.5 (0.3 and 0.7 were tried, too).

Assumption: :math:`\alpha_x` is the local adapter's weight, since an example like the client's own is its business. Of
those who wrote the method anew, some give it to the global one: ``similar="global"``.
Assumption: it is kept within [0, 1]; a cosine may be negative.
Assumption: u is read with the local adapter active, as the authors' code does (``features="local"``; others read it
with the global one), and is what the module's ``features`` gives. The authors take the last token of the last layer.
Assumption: the S examples are drawn once for each client; the authors draw anew for each example to predict.
Assumption: T's local adapter starts as the module's initial one, in the client's first turn; the authors' code skips
the first round. It is trained beside the global adapter that was received, as there and as it will predict;
``beside="own"``: beside what the client has just made of it.
Assumption: a task head is part of either adapter, and logits are mixed with the weights of the adapters.
Assumption: the local adapter's turn is as long as the global one's, so that T's turn is twice as long as FedAvg's.
Assumption: a client without a local adapter predicts with the global one.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor
from torch.nn.functional import cosine_similarity

from lit_fed.algorithms.base import GLOBAL, LOCAL, Blend, Learner, Serving, Step, report
from lit_fed.algorithms.fedavg import FedAvg
from lit_fed.algorithms.low_rank import lora_problems
from lit_fed.core.aggregate import Weights
from lit_fed.core.types import AdapterState, Client, ClientId, FitResult, Private, Server, Setting, Task, Update


class FedDPA(FedAvg):
    """A global and a local adapter, mixed by how much an example is like the client's own.

    The module must offer ``logits(batch)`` and ``features(batch)`` (B, D). A prediction takes two forward passes.

    Args:
        variant: ``"F"``: the local adapter is fine-tuned from the global one at the end; ``"T"``: it is trained in
            every round.
        federated_rounds: For ``"F"``, rounds before the local adapters are tuned, >= 1; ``federation.rounds`` is one
            more.
        alpha: For ``"T"``, weight of the local adapter while it is trained, in (0, 1].
        beside: For ``"T"``, the global adapter it is trained beside: ``"received"``, or the client's ``"own"``.
        weigh: How much of the local adapter there is in a prediction: ``"instance"``, or always `alpha` (``"fixed"``).
        scale: The most that the similar adapter may weigh, in (0, 1].
        instances: Training examples of a client that others are compared with, >= 1; it may have fewer.
        features: What features are compared: those with the ``"local"`` or ``"global"`` adapter, or of the ``"base"``.
        similar: Which adapter weighs more the more similar an example is: ``"local"`` or ``"global"``.
        personal_steps: Optimizer steps of the local adapter in a turn, or
        personal_epochs: its passes over the client's training data. Neither means as long as the global one.
        weights: ``"examples"`` weighs a client by its training examples, ``"uniform"`` all alike.
        local_steps: Optimizer steps of the global adapter in a turn, or
        local_epochs: its passes over the client's training data. Give exactly one; neither means one epoch.
    """

    slots = (GLOBAL, LOCAL)
    needs = frozenset({"logits", "features"})

    def __init__(
        self,
        variant: Literal["F", "T"] = "F",
        federated_rounds: int = 20,
        alpha: float = 0.5,
        beside: Literal["received", "own"] = "received",
        weigh: Literal["instance", "fixed"] = "instance",
        scale: float = 0.5,
        instances: int = 5,
        features: Literal["local", "global", "base"] = "local",
        similar: Literal["local", "global"] = "local",
        personal_steps: int | None = None,
        personal_epochs: int | None = None,
        weights: Weights = "examples",
        local_steps: int | None = None,
        local_epochs: int | None = None,
    ) -> None:
        super().__init__(weights, local_steps, local_epochs)
        self.variant, self.federated_rounds = variant, federated_rounds
        self.alpha, self.beside = alpha, beside
        self.weigh, self.scale, self.instances = weigh, scale, instances
        self.features, self.similar = features, similar
        self.personal_budget = self.budget.part(personal_steps, personal_epochs)

    def problems(self, setting: Setting) -> list[str]:
        """Shares are shares, and there are two adapters to mix."""
        rules = [
            ("federated_rounds", "to be >= 1", self.federated_rounds, self.federated_rounds >= 1),
            ("alpha", "to be in (0, 1]", self.alpha, 0 < self.alpha <= 1),
            ("scale", "to be in (0, 1]", self.scale, 0 < self.scale <= 1),
            ("instances", "to be >= 1", self.instances, self.instances >= 1),
        ]
        found = [
            f"Expected `algorithm.{key}` {rule}, but got {value}." for key, rule, value, holds in rules if not holds
        ]
        if self.personal_budget is not self.budget:
            found += self.personal_budget.problems("personal")
        return super().problems(setting) + found + lora_problems(self, setting)

    def init(self, adapter: AdapterState, setting: Setting) -> Server:
        """Nobody has been tuned."""
        if self.variant == "F" and 0 < setting.rounds < (needed := self.federated_rounds + 1):
            warnings.warn(
                f"FedDPA tunes local adapters in round {needed}, but `federation.rounds` is {setting.rounds}: clients "
                f"will be served the global one. Set it to `algorithm.federated_rounds` + 1 = {needed}.",
                stacklevel=2,
            )
        return Server(0, adapter, {"tuned": []})

    def plan(self, server: Server, cohort: Sequence[Client]) -> dict[ClientId, Task]:
        """The global adapter goes down; who is tuned is done."""
        tunes = self.tunes(server.round)
        left = [client.id for client in cohort if not (tunes and client.id in server.state["tuned"])]
        return {client: Task(server.adapter, {"tune": tunes}) for client in left}

    def local(self, learner: Learner, task: Task, private: Private) -> tuple[Update, Private]:
        """One turn of the stage."""
        if task.config["tune"]:
            learner.load(task.adapter)
            learner.load(task.adapter, LOCAL)
            learner.activate(LOCAL)
            fit = self._fit(learner, None)
            return report(learner, {}, fit), self._kept(learner)
        update, _ = super().local(learner, task, private)
        if self.variant == "F":
            return update, private
        learner.load(private.get("local", {}), LOCAL)
        if self.beside == "received":
            learner.load(task.adapter)
        learner.activate(LOCAL)
        fit = self._fit(learner, {GLOBAL: 1 - self.alpha, LOCAL: self.alpha})
        metrics = {**update.metrics, "steps": update.metrics["steps"] + fit.num_steps}
        return replace(update, metrics=metrics), self._kept(learner)

    def merge(self, server: Server, updates: Iterable[Update]) -> Server:
        """The mean of the global adapters; after tuning, who is done."""
        updates = list(updates)
        if not self.tunes(server.round):
            return super().merge(server, updates)
        tuned = sorted({*server.state["tuned"], *(update.client for update in updates)})
        return replace(server, state={**server.state, "tuned": tuned})

    def serve(self, server: Server, private: Private) -> Serving:
        """The mixture, for a client that has a local adapter."""
        if "local" not in private:
            return Serving({GLOBAL: server.adapter})
        rule = Instancewise(private["references"], self.scale, self.features, self.similar)
        fixed = Fixed(self.alpha)
        adapters = {GLOBAL: server.adapter, LOCAL: private["local"]}
        return Serving(adapters, predict=rule if self.weigh == "instance" else fixed)

    def tunes(self, round: int) -> bool:
        """Whether local adapters are fine-tuned in a round, and nothing else is done."""
        return self.variant == "F" and round >= self.federated_rounds

    def _fit(self, learner: Learner, blend: Blend | None) -> FitResult:
        budget = self.personal_budget
        objective = None if blend is None else lambda step: step.loss(blend)
        return learner.fit(steps=budget.steps, epochs=budget.epochs, objective=objective)

    def _kept(self, learner: Learner) -> Private:
        """The local adapter, and the features (S, D) of the examples that others are compared with."""
        slot = None if self.features == "base" else self.features
        references = learner.outputs(lambda step: step.features(slot).float(), "train", self.instances)
        return {"local": learner.state(LOCAL), "references": references}


@dataclass(frozen=True)
class Instancewise:
    """How a client predicts: the more an example is like its own, the more one of the adapters weighs.

    Args:
        references: Features of the client's own examples, (S, D).
        scale: The weight of an example whose features have the direction of all of them.
        features: With which adapter features are read.
        similar: Which adapter has that weight; the other one has the rest.
    """

    references: Tensor
    scale: float
    features: str
    similar: str

    def __call__(self, step: Step) -> Tensor:
        """Logits of the mixture, (B, ..., C)."""
        weight = self.weights(step.features(None if self.features == "base" else self.features))
        return step.logits({self.similar: weight, LOCAL if self.similar == GLOBAL else GLOBAL: 1 - weight})

    def weights(self, features: Tensor) -> Tensor:
        """The similar adapter's weights, (B,), from features (B, D)."""
        references = self.references.to(features.device)
        cosines = cosine_similarity(features.float().unsqueeze(1), references.unsqueeze(0), dim=-1)
        return (self.scale * cosines.mean(1)).clamp(0, 1)


@dataclass(frozen=True)
class Fixed:
    """How a client predicts with a weight that is the same for all examples.

    Args:
        alpha: The local adapter's.
    """

    alpha: float

    def __call__(self, step: Step) -> Tensor:
        """Logits of the mixture, (B, ..., C)."""
        return step.logits({GLOBAL: 1 - self.alpha, LOCAL: self.alpha})
