"""The words of a federation, as types.

Everything that crosses a seam is immutable and made of tensors and JSON values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor

ClientId: TypeAlias = str
AdapterState: TypeAlias = Mapping[str, Tensor]
"""Canonical name -> tensor (float32, on the CPU, when it crosses a seam)."""
Tree: TypeAlias = Mapping[str, Any]
"""Nested mappings with `str` keys whose leaves are tensors or JSON values; what can be stored without pickle."""
Private: TypeAlias = Tree
"""What never leaves a client. Empty before its first turn."""


@dataclass(frozen=True)
class Client:
    """A registered client, as the server knows it."""

    id: ClientId
    num_examples: int
    """Training examples it holds."""
    domain: str | None = None
    """The one domain its examples come from, if there is one."""
    stands_for: int = 1
    """How many registered clients' data it holds; more than 1 only where an algorithm pools them."""


@dataclass(frozen=True)
class ModelInfo:
    """What an algorithm may know of the model it tunes."""

    num_blocks: int
    """Transformer blocks of the backbone; 0 if none were found."""
    has_head: bool
    """Whether the adapter has a task head (names under ``head.``)."""
    total_parameters: int
    trainable_parameters: int
    block_bytes: tuple[int, ...] = ()
    """Bytes of the frozen weights of each block."""
    training_bytes: tuple[int, int] | None = None
    """Measured peak memory of a training step: what it takes without any block, and what each block adds. Only for
    algorithms that ask for it."""
    rank: int = 0
    """LoRA rank, the largest if layers differ; 0 without LoRA."""


@dataclass(frozen=True)
class Setting:
    """What an algorithm may know of a federation before the first round."""

    model: ModelInfo
    clients: tuple[Client, ...]
    """Everyone registered, in client-id order."""
    cohort_size: int
    """Clients of a round."""
    seed: int = 0
    """For `lit_fed.core.seeding.generator`."""
    rounds: int = 0
    """Rounds asked for, 0 if nobody said; a run that is continued may ask for more, so no result depends on it."""


@dataclass(frozen=True)
class Server:
    """The server's state between rounds. Whatever must survive a restart is in here or in `Private`."""

    round: int
    """Rounds finished so far; set by the engine."""
    adapter: AdapterState
    """The global adapter."""
    state: Tree = field(default_factory=dict)
    """Anything else an algorithm carries from round to round (momentum, stage, triggers)."""
    seed: int = 0
    """The federation's seed, for `lit_fed.core.seeding.generator`; set by the engine."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers about the last merge, logged as ``server/<name>`` and drawn over rounds; no part of the state."""


@dataclass(frozen=True)
class Task:
    """What goes down to one client in one round."""

    adapter: AdapterState
    config: Mapping[str, Any] = field(default_factory=dict)
    """Small JSON values: stage, switches."""
    blocks: tuple[int, ...] | None = None
    """The blocks the client is to run (`None`: all). Also what its expected cost is computed from."""


@dataclass(frozen=True)
class Update:
    """What comes up from one client in one round."""

    client: ClientId
    adapter: AdapterState
    """May hold a subset of the names (FedRA), only the gate (FedFMSL stage 2), or nothing (Local)."""
    num_examples: int
    """Training examples the client holds: its weight under ``weights="examples"``."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers about the local work (loss, steps); also what a trigger on the server may use."""


@dataclass(frozen=True)
class FitResult:
    """What a local training run did."""

    num_examples: int
    """Examples the client holds."""
    num_steps: int
    """Optimizer steps made."""
    loss: float
    """Mean training loss over the examples seen."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the module logged, averaged over the examples seen."""
