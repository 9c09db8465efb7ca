"""Progressive activation: how many groups of blocks are tuned, and when there is one more.

SAL of FedFMSL. The groups stand in an order, usually from the last block to the first; the number of active ones never
falls. What has happened since the last change is a small record of JSON values.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

Order = Literal["last_first", "first_last"]


@dataclass(frozen=True)
class Activation:
    """How many groups are active, and what has been seen since the last one was added."""

    active: int
    rounds: int = 0
    """Rounds since then."""
    recent: tuple[float, ...] = ()
    """Validation accuracies since then, oldest first, as many as somebody looks at."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Activation":
        """The inverse of `values`."""
        return cls(values["active"], values["rounds"], tuple(values["recent"]))

    def values(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "recent": list(self.recent)}

    def seen(self, accuracy: float | None, window: int) -> "Activation":
        """One round later, with the accuracy that was measured in it, if one was."""
        recent = self.recent if accuracy is None else (*self.recent, accuracy)[-window:]
        return replace(self, rounds=self.rounds + 1, recent=recent)


class Schedule(Protocol):
    """When the next group is activated."""

    def due(self, now: Activation) -> bool:
        """Whether it is, from what has been seen since the last one."""
        ...


@dataclass(frozen=True)
class Plateau:
    """When accuracy has stopped changing, or it has taken too long.

    Args:
        window: Accuracies to look at.
        eps: They are a plateau if the largest and the smallest differ by less.
        patience_max: Rounds after which the next group is due whatever the accuracies.
    """

    window: int
    eps: float
    patience_max: int

    def due(self, now: Activation) -> bool:
        """See above; a window that is not full is none."""
        full = len(now.recent) >= self.window
        return (full and max(now.recent) - min(now.recent) < self.eps) or now.rounds >= self.patience_max


@dataclass(frozen=True)
class Fixed:
    """Every so many rounds.

    Args:
        every: Rounds from one group to the next.
    """

    every: int

    def due(self, now: Activation) -> bool:
        """See above."""
        return now.rounds >= self.every


def next_active(now: Activation, schedule: Schedule, num_groups: int) -> Activation:
    """With one more group, and nothing seen yet, if that is due and there is one more; else as it is."""
    return Activation(now.active + 1) if now.active < num_groups and schedule.due(now) else now


def mean_over_examples(measured: Iterable[tuple[float, float]]) -> float | None:
    """The mean of values, each given with its number of examples; `None` if there are no examples."""
    pairs = list(measured)
    examples = math.fsum(number for _, number in pairs)
    return math.fsum(value * number for value, number in pairs) / examples if examples > 0 else None


def activated(active: int, group_size: int, num_blocks: int, order: Order = "last_first") -> tuple[int, ...]:
    """The blocks of the active groups, ascending.

    Args:
        active: Active groups.
        group_size: Blocks of a group; the last one to be activated may have fewer.
        num_blocks: Blocks of the model.
        order: Whether the first group holds the last blocks or the first ones.
    """
    return _first(min(active * group_size, num_blocks), num_blocks, order)


def trained(
    active: int,
    group_size: int,
    num_blocks: int,
    cap: int,
    window: int | None = None,
    order: Order = "last_first",
) -> tuple[int, ...]:
    """The blocks that a client trains: of the active ones, as many as it can, from the beginning of the order.

    Args:
        active: Active groups.
        group_size: Blocks of a group.
        num_blocks: Blocks of the model.
        cap: Blocks that the client can train, >= 1, counted from the beginning of the order.
        window: Groups that are trained at a time, the newest; older ones are frozen (`None`: all stay).
        order: As in `activated`.
    """
    reached = min(active * group_size, num_blocks, cap)
    if window is None:
        return _first(reached, num_blocks, order)
    groups = -(-reached // group_size)  # the client's own newest group may be cut off by its cap
    older = _first(min(max(groups - window, 0) * group_size, reached), num_blocks, order)
    return tuple(block for block in _first(reached, num_blocks, order) if block not in older)


def _first(number: int, num_blocks: int, order: Order) -> tuple[int, ...]:
    """The first blocks of the order, ascending."""
    return tuple(range(num_blocks - number, num_blocks) if order == "last_first" else range(number))
