r"""A mixture of two slots by a gate: how it predicts, and its loss.

.. math:: z(x) = g_G(x) \, z_G(x) + g_L(x) \, z_L(x), \qquad g(x) \in \mathbb{R}^2 \text{ from features } u(x)

Shapes: B examples, D features, C classes; logits are (B, ..., C). Only the local expert and the gate have gradients.

Assumption: an example has one pair of weights, also where its logits are many (a token each).
Assumption: the loss is the cross-entropy of the mixture, also where the module's own loss is another one.
Assumption: mixed features are read by both heads, and what they say is mixed by the same weights; with equal linear
heads that is the mixture of logits.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from lit_fed.algorithms.base import GLOBAL, LOCAL, Step

Mix: TypeAlias = Literal["logits", "features", "probs"]
GateInput: TypeAlias = Literal["base", "global"]

_IGNORED = -100  # PyTorch's mark of a target that counts for nothing


@dataclass(frozen=True)
class Mixture:
    """The rule: logits of a batch from what a step offers.

    Args:
        mix: What is mixed: ``"logits"``; ``"probs"``, whose logarithms are then the logits; or ``"features"``.
        gate_input: What the gate reads: features of the ``"base"`` model, for which it runs once more, or of the
            ``"global"`` expert.
        gated: Whether a gate weighs the two. Else each has 1/2.
    """

    mix: Mix
    gate_input: GateInput
    gated: bool = True

    def __call__(self, step: Step) -> Tensor:
        """Logits of the mixture, (B, ..., C)."""
        return self.weighed(step)[0]

    def weighed(self, step: Step) -> tuple[Tensor, Tensor]:
        """Logits, (B, ..., C), and the weights of the global and the local expert, (B, 2)."""
        if self.mix == "features":
            with torch.no_grad():
                of_global = step.features(GLOBAL)
                u = step.features(None) if self.gated and self.gate_input == "base" else of_global
            g = self._weights(step, u)
            features = weigh(g, of_global, step.features(LOCAL))
            return weigh(g, step.classify(features, GLOBAL), step.classify(features, LOCAL)), g
        with torch.no_grad():
            if not self.gated:
                of_global = u = step.logits(GLOBAL)
            elif self.gate_input == "global":
                of_global, u = step.logits_and_features(GLOBAL)
            else:
                of_global, u = step.logits(GLOBAL), step.features(None)
        g, of_local = self._weights(step, u), step.logits(LOCAL)
        if self.mix == "logits":
            return weigh(g, of_global, of_local), g
        logs = [log_softmax(z.float(), dim=-1) for z in (of_global, of_local)]
        least = torch.finfo(g.dtype).tiny  # a sure gate's other weight is 0, and the slope of log 0 is no number
        shares = [_like(share, logs[0]) for share in g.clamp_min(least).log().unbind(-1)]
        return torch.logaddexp(shares[0] + logs[0], shares[1] + logs[1]), g

    def _weights(self, step: Step, u: Tensor) -> Tensor:
        """The weights of the two, (B, 2), from one row of u for each example."""
        return step.gate(u) if self.gated else torch.full((len(u), 2), 0.5, device=u.device)


class MixtureLoss:
    """The mixture's cross-entropy in nats, a mean over targets; notes down the weights it sees.

    Args:
        mixture: The rule.
    """

    def __init__(self, mixture: Mixture) -> None:
        self._mixture, self._sum, self._examples = mixture, torch.zeros(()), 0

    def __call__(self, step: Step) -> Tensor:
        """The loss of a batch."""
        logits, g = self._mixture.weighed(step)
        self._sum = self._sum.to(g.device) + g[:, 1].detach().sum()
        self._examples += len(g)
        targets = step.targets().flatten()
        total = cross_entropy(logits.flatten(0, -2).float(), targets, ignore_index=_IGNORED, reduction="sum")
        return total / (targets != _IGNORED).sum().clamp(min=1)

    @property
    def local_share(self) -> float | None:
        """The mean weight of the local expert over the examples this process has seen; `None` before the first."""
        return float(self._sum) / self._examples if self._examples else None


def weigh(g: Tensor, of_global: Tensor, of_local: Tensor) -> Tensor:
    """The weighted sum of what two experts give, float32, from weights (B, 2) and two tensors (B, ...)."""
    return _like(g[:, 0], of_global) * of_global.float() + _like(g[:, 1], of_local) * of_local.float()


def _like(share: Tensor, values: Tensor) -> Tensor:
    """A number for each example, (B), in the shape that multiplies (B, ...)."""
    return share.view(-1, *[1] * (values.ndim - 1))
