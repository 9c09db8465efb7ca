"""The one exchange of a round: what every process's clients sent, given to every process."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch import Tensor

from lit_fed.core.errors import ClientFailure
from lit_fed.core.types import Update


@dataclass(frozen=True)
class Report:
    """How one client's turn ended, for the other processes and for ``clients.csv``."""

    update: Update | None
    """What it sent, if it did not fail."""
    row: dict[str, Any] = field(default_factory=dict)
    """Its numbers: JSON values."""
    failure: ClientFailure | None = None


class Exchange:
    """Gathers reports over processes; with one process nothing is copied.

    Adapters are on the host when they cross the seam, so the exchange runs over gloo, whatever the devices are.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.size = fabric.world_size
        uses_gloo = self.size > 1 and dist.get_backend() == "gloo"
        self._group = dist.new_group(backend="gloo") if self.size > 1 and not uses_gloo else None

    def gather(self, reports: Sequence[Report]) -> list[Report]:
        """All processes' reports, in client-id order."""
        if self.size > 1:
            reports = [report for blob in self._all_gather(pack(reports)) for report in unpack(blob)]
        return sorted(reports, key=_client_of)

    def gather_json(self, value: Any) -> list[Any]:
        """One JSON value a process, in rank order."""
        if self.size == 1:
            return [value]
        blobs = self._all_gather(torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8))
        return [json.loads(bytes(blob.numpy())) for blob in blobs]

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """Of each of some whole numbers, as many in every process, the largest that a process has."""
        found = torch.tensor(numbers, dtype=torch.int64)
        if self.size > 1:
            dist.all_reduce(found, dist.ReduceOp.MAX, group=self._group)
        return [int(number) for number in found]

    def _all_gather(self, blob: Tensor) -> list[Tensor]:
        length = torch.tensor([blob.numel()])
        lengths = [torch.zeros_like(length) for _ in range(self.size)]
        dist.all_gather(lengths, length, group=self._group)
        longest = max(int(n) for n in lengths)
        padded = torch.cat([blob, blob.new_zeros(longest - blob.numel())])
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(gathered, padded, group=self._group)
        return [part[: int(n)] for part, n in zip(gathered, lengths, strict=True)]


def pack(reports: Sequence[Report]) -> Tensor:
    """Reports as bytes: a JSON header and one run of bytes for all tensors, never pickle. Shape (num_bytes,), uint8.

    An adapter is many small tensors, and each that is written and read by itself costs tens of microseconds. So those
    of a type go together.
    """
    header: list[dict[str, Any]] = []
    runs: list[Tensor] = []
    for report in reports:
        entry: dict[str, Any] = {"row": report.row}
        if report.update is not None:
            update = report.update
            entry["update"] = [update.client, update.num_examples, dict(update.metrics)]
            entry["adapter"] = [[name, _name_of(t.dtype), list(t.shape)] for name, t in update.adapter.items()]
            for dtype in _in_order(tensor.dtype for tensor in update.adapter.values()):
                flat = torch.cat([t.detach().cpu().reshape(-1) for t in update.adapter.values() if t.dtype == dtype])
                run = flat.view(torch.uint8)
                runs += [run, run.new_zeros(-len(run) % _ALIGN)]
        if report.failure is not None:
            entry["failure"] = [*report.failure.__reduce__()[1]]
        header.append(entry)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGN)
    length = torch.tensor([len(text)]).view(torch.uint8)
    return torch.cat([length, torch.frombuffer(bytearray(text), dtype=torch.uint8), *runs])


def unpack(blob: Tensor) -> list[Report]:
    """The inverse of `pack`; tensors of an update may share a memory, those of two do not."""
    length = int(blob[:_ALIGN].view(torch.int64))
    rest = blob[_ALIGN + length :]
    reports = []
    for entry in json.loads(bytes(blob[_ALIGN : _ALIGN + length].numpy())):
        update = failure = None
        if "update" in entry:
            adapter, rest = _unpacked(
                [(name, getattr(torch, kind), shape) for name, kind, shape in entry["adapter"]], rest
            )
            client, num_examples, metrics = entry["update"]
            update = Update(client, adapter, num_examples, metrics)
        if "failure" in entry:
            failure = ClientFailure(*entry["failure"])
        reports.append(Report(update, entry["row"], failure))
    return reports


_ALIGN = 8
"""A run of one type begins at a multiple of so many bytes, as the type may ask."""


def _unpacked(layout: Sequence[tuple[str, torch.dtype, list[int]]], rest: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The adapter of this layout at the beginning of some bytes, and the bytes behind it."""
    found: dict[str, Tensor] = {}
    for dtype in _in_order(dtype for _, dtype, _ in layout):
        own = [(name, shape) for name, kind, shape in layout if kind == dtype]
        sizes = [math.prod(shape) for _, shape in own]
        num_bytes = sum(sizes) * dtype.itemsize
        parts = rest[:num_bytes].clone().view(dtype).split(sizes)
        found.update((name, part.view(shape)) for (name, shape), part in zip(own, parts, strict=True))
        rest = rest[num_bytes + -num_bytes % _ALIGN :]
    return {name: found[name] for name, _, _ in layout}, rest


def _in_order(types: Iterable[torch.dtype]) -> Iterable[torch.dtype]:
    """Each type once, in the order in which they come up: that of the runs."""
    return dict.fromkeys(types)


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _client_of(report: Report) -> str:
    return report.update.client if report.update is not None else report.failure.client if report.failure else ""
