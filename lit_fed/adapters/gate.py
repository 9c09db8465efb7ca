r"""A gate: a small network that says, example by example, how much of each of two slots to use.

From features u of shape (B, D), of which the encoder is frozen,

.. math:: h = u + W_{up} \, \mathrm{GELU}(W_{down} \, \mathrm{LN}(u)), \qquad
          g = \mathrm{softmax}(V h + v) \in \mathbb{R}^2.

:math:`W_{up}`, :math:`V` and :math:`v` start as zeros, so that :math:`g = (1/2, 1/2)`. So the gate wakes in an order:
V and v have a gradient at once, :math:`W_{up}` when V has moved, :math:`W_{down}` when :math:`W_{up}` has. Both linear
maps of the adapter have a bias. LN has no parameters of its own: they would be part of :math:`W_{down}` and its bias.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from lit_fed.adapters.layout import AttachedGate, attached_gate, declared_head
from lit_fed.core.errors import ConfigError
from lit_fed.core.names import GATE

_DOWN = f"{GATE}.adapter.down.weight"


class Gate(AttachedGate):
    """See above.

    Args:
        width: D, the width of the features.
        bottleneck: The width of the adapter.
        device: Where its parameters are; they are float32.
    """

    def __init__(self, width: int, bottleneck: int, device: torch.device | None = None) -> None:
        super().__init__()
        down = nn.Linear(width, bottleneck, device=device, dtype=torch.float32)
        up = nn.Linear(bottleneck, width, device=device, dtype=torch.float32)
        self.adapter = nn.ModuleDict({"down": down, "up": up})
        self.head = nn.Linear(width, 2, device=device, dtype=torch.float32)
        for zero in (up.weight, up.bias, self.head.weight, self.head.bias):
            nn.init.zeros_(zero)

    def forward(self, features: Tensor) -> Tensor:
        """The weights of the two slots, float32, (B, 2), from features (B, D)."""
        u = features.float()
        h = u + self.adapter["up"](gelu(self.adapter["down"](layer_norm(u, u.shape[-1:]))))
        weights: Tensor = self.head(h).float().softmax(-1)
        return weights


def attach_gate(module: nn.Module, bottleneck: int | None) -> None:
    """Give a module a gate, in its attribute ``gate``, in place of the one it had.

    An `AdapterView` that is made afterwards exchanges it in slot ``"global"``, under names like ``gate.head.weight``.
    Make slots before: `AdapterView.add_slot` wants PEFT to hold all that is trained. Initial values are drawn from
    the global generator.

    Args:
        module: The outermost module: the `LightningModule`.
        bottleneck: The width of the gate's adapter; `None` takes the module's gate away.

    Raises:
        ConfigError: If the module has a ``gate`` of its own, or does not say how wide its features are.
    """
    if attached_gate(module) is not None:
        delattr(module, GATE)
    if bottleneck is None:
        return
    if hasattr(module, GATE):
        raise ConfigError(
            f"Expected {type(module).__name__} to have no attribute `{GATE}` of its own, but it has. Rename it."
        )
    device = next((parameter.device for parameter in module.parameters()), None)
    module.add_module(GATE, Gate(feature_width(module), bottleneck, device))


def require_gate(module: nn.Module) -> AttachedGate:
    """The gate a module was given.

    Raises:
        ConfigError: If it has none.
    """
    gate = attached_gate(module)
    if gate is None:
        raise ConfigError(
            f"Expected {type(module).__name__} to have been given a gate, but it has none. An algorithm asks for one "
            "by its method `gate`; `lit_fed.adapters.attach_gate` gives it."
        )
    return gate


def feature_width(module: nn.Module) -> int:
    """D, the width of ``module.features(batch)`` (B, D), without a forward pass.

    What the module says in an attribute ``feature_width``; else what its head reads, which is the first of its
    ``feature_readers()``, or its ``head_module``.

    Raises:
        ConfigError: If the module offers no features, or there is no telling.
    """
    name = type(module).__name__
    if not callable(getattr(module, "features", None)):
        raise ConfigError(
            f"Expected {name} to offer `features(batch)`, for a gate to read, but it does not. Add the method, or use "
            "a lit_fed.modules class."
        )
    said = getattr(module, "feature_width", None)
    if isinstance(said, int):
        return said
    readers = getattr(module, "feature_readers", None)
    heads = [*(readers() if callable(readers) else ()), declared_head(module)]
    weights = (p for head in heads if head is not None for p in head.parameters() if p.ndim >= 2)
    weight = next(weights, None)
    if weight is None:
        raise ConfigError(
            f"Expected {name} to say how wide its features are, but it has no head with a weight of shape (out, in). "
            "Give it an attribute `feature_width`."
        )
    return int(weight.shape[1])


def width_of(adapter: Mapping[str, Tensor]) -> int | None:
    """The bottleneck of the gate in an adapter, or `None` if there is none in it."""
    return adapter[_DOWN].shape[0] if _DOWN in adapter else None
