"""Buffers that are not exchanged: put back between clients, so that one client's turn cannot reach the next."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class _Saved:
    owner: nn.Module
    name: str
    buffer: Tensor
    """The object the module held."""
    value: Tensor
    """A copy of what was in it."""


class BufferSnapshot:
    """The values of a module's buffers, persistent or not, at one moment.

    All of them are copied back, in one call, changed or not: a tensor's version counter cannot tell, since the kernel
    of batch normalisation writes running statistics without moving it.

    Args:
        module: The module, on the device where it will be used.
        exchanged: ``(id(owner), name)`` of the buffers to leave alone.
    """

    def __init__(self, module: nn.Module, exchanged: Collection[tuple[int, str]]) -> None:
        self._saved = [
            _Saved(owner, name, buffer, buffer.detach().clone())
            for owner in module.modules()
            for name, buffer in owner._buffers.items()
            if buffer is not None and (id(owner), name) not in exchanged
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Put objects and values back. A buffer that was registered later is left as it is."""
        for saved in self._saved:
            now = saved.owner._buffers.get(saved.name)
            if now is not None and (now.device, now.dtype) != (saved.buffer.device, saved.buffer.dtype):
                saved.buffer = now.detach().clone()  # the module has been moved
            saved.owner._buffers[saved.name] = saved.buffer
        writable = [saved for saved in self._saved if not _overlaps(saved.buffer)]
        if writable:
            torch._foreach_copy_([saved.buffer for saved in writable], [saved.value for saved in writable])


def _overlaps(buffer: Tensor) -> bool:
    """Whether entries share memory (`expand`). Nothing can be written to such a tensor in place, by anyone."""
    return any(stride == 0 and size > 1 for stride, size in zip(buffer.stride(), buffer.shape, strict=True))
