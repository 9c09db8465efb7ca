"""What goes over the network, in bytes: tensors as they are, everything else as JSON."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lit_fed.core.tree import num_bytes
from lit_fed.core.types import Task, Update

__all__ = ["Traffic", "task_bytes", "update_bytes"]


@dataclass(frozen=True)
class Traffic:
    """Bytes up (clients to server) and down (server to clients). Add two with ``+``."""

    up_bytes: int = 0
    down_bytes: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.up_bytes + other.up_bytes, self.down_bytes + other.down_bytes)

    @classmethod
    def of(cls, tasks: Iterable[Task] = (), updates: Iterable[Update] = ()) -> "Traffic":
        """The traffic of some tasks (down) and updates (up), e.g. of one client's turn or of a round."""
        return cls(sum(map(update_bytes, updates)), sum(map(task_bytes, tasks)))


def task_bytes(task: Task) -> int:
    """Bytes of a task: its tensors, and as JSON its configuration, and its blocks if it names any."""
    rest: dict[str, Any] = {"config": dict(task.config)}
    if task.blocks is not None:
        rest["blocks"] = list(task.blocks)
    return num_bytes(task.adapter) + _json_bytes(rest)


def update_bytes(update: Update) -> int:
    """Bytes of an update: its tensors, and as JSON the client's id, its number of examples and its metrics."""
    rest = {"client": update.client, "num_examples": update.num_examples, "metrics": dict(update.metrics)}
    return num_bytes(update.adapter) + _json_bytes(rest)


def _json_bytes(value: Any) -> int:
    return len(json.dumps(value, separators=(",", ":")).encode())
