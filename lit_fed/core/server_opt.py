"""Server optimizers as pure functions: the mean change of a round is their gradient.

Every rule maps ``(old, mean, state) -> (new, state)``: the adapter before the round, the clients' mean after it, and
what the rule remembers (empty at first, kept in `Server.state`). With ``delta = old - mean`` in float64 a step
*subtracts*.

Sources: Reddi et al., "Adaptive Federated Optimization" (ICLR 2021), Algorithm 2, for Adam and Yogi; Hsu et al.,
"Measuring the Effects of Non-Identical Data Distribution" (2019) for server momentum; the Nesterov form is that of
torch.optim.SGD, used as the outer step of DiLoCo and FDLoRA.
"""

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from lit_fed.core.tree import map_states
from lit_fed.core.types import AdapterState, Tree

StepResult: TypeAlias = tuple[dict[str, Tensor], dict[str, Any]]


class ServerOptimizer(Protocol):
    """A rule for moving the global adapter along the mean change of a round."""

    def step(self, old: AdapterState, mean: AdapterState, state: Tree) -> StepResult:
        """One outer step; returns the new adapter and the new state."""
        ...


@dataclass(frozen=True)
class Sgd:
    """``v = momentum * v + delta``; ``new = old - lr * v``, or ``old - lr * (delta + momentum * v)`` with Nesterov."""

    lr: float = 1.0
    momentum: float = 0.0
    nesterov: bool = False

    def step(self, old: AdapterState, mean: AdapterState, state: Tree) -> StepResult:
        """One outer step; with ``lr=1, momentum=0`` the new adapter is the clients' mean, bit for bit."""
        delta = _change(old, mean)
        velocity = map_states(lambda v, d: self.momentum * v + d, state.get("velocity") or _zeros(delta), delta)
        # Beyond the plain step to `mean`: written from `mean`, not from `old`, so that lr = 1 adds exactly nothing.
        ahead = velocity if self.nesterov else state.get("velocity") or _zeros(delta)
        new = map_states(
            lambda m, d, v: (m.double() + (1 - self.lr) * d - self.lr * self.momentum * v).to(m.dtype),
            mean,
            delta,
            ahead,
        )
        return new, {"velocity": velocity} if self.momentum else {}


@dataclass(frozen=True)
class _Adaptive:
    """What Adam and Yogi share: first moment of the change, and a step scaled by the root of the second.

    Assumption: no bias correction, and the second moment starts at ``tau ** 2``, as in Reddi et al., Algorithm 2.
    """

    lr: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def second_moment(self, v: Tensor, d: Tensor) -> Tensor:
        """The new second moment from the old one and this round's change."""
        raise NotImplementedError

    def step(self, old: AdapterState, mean: AdapterState, state: Tree) -> StepResult:
        """One outer step."""
        delta = _change(old, mean)
        m = map_states(lambda m, d: self.beta1 * m + (1 - self.beta1) * d, state.get("m") or _zeros(delta), delta)
        start = map_states(lambda d: torch.full_like(d, self.tau**2), delta)
        v = map_states(self.second_moment, state.get("v") or start, delta)
        new = map_states(lambda o, m, v: (o.double() - self.lr * m / (v.sqrt() + self.tau)).to(o.dtype), old, m, v)
        return new, {"m": m, "v": v}


@dataclass(frozen=True)
class Adam(_Adaptive):
    """``v = beta2 * v + (1 - beta2) * delta**2``."""

    def second_moment(self, v: Tensor, d: Tensor) -> Tensor:
        """Exponential moving average of the squared change."""
        return self.beta2 * v + (1 - self.beta2) * d.square()


@dataclass(frozen=True)
class Yogi(_Adaptive):
    """``v = v - (1 - beta2) * delta**2 * sign(v - delta**2)``: additive, so v cannot shrink too fast."""

    def second_moment(self, v: Tensor, d: Tensor) -> Tensor:
        """Yogi's additive rule."""
        square = d.square()
        return v - (1 - self.beta2) * square * torch.sign(v - square)


def _change(old: AdapterState, mean: AdapterState) -> dict[str, Tensor]:
    return map_states(lambda o, m: o.double() - m.double(), old, mean)


def _zeros(like: AdapterState) -> dict[str, Tensor]:
    return map_states(torch.zeros_like, like)
