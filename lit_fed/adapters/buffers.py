"""Buffers that are not exchanged: put back between clients, so that one client's turn cannot reach the next."""

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class BufferSnapshot:
    """The values of a module's buffers, persistent or not, at one moment.

    A buffer whose version counter has not moved is not copied back. The counter misses some writes: `BatchNorm`'s
    kernel writes its running statistics without it, so these always are, and with them every buffer of a module one of
    whose buffers has moved.

    Args:
        module: The module, on the device where it will be used.
        exchanged: ``(id(owner), name)`` of the buffers to leave alone.
    """

    def __init__(self, module: nn.Module, exchanged: Collection[tuple[int, str]]) -> None:
        self._saved: list[tuple[nn.Module, dict[str, _Saved]]] = []
        for owner in module.modules():
            saved = {
                name: _Saved(buffer)
                for name, buffer in owner._buffers.items()
                if buffer is not None and (id(owner), name) not in exchanged
            }
            if saved:
                self._saved.append((owner, saved))

    @torch.no_grad()
    def restore(self) -> None:
        """Put the values back. A buffer that was registered later is left as it is."""
        for owner, saved in self._saved:
            if isinstance(owner, _NormBase) or any(s.changed(owner._buffers.get(name)) for name, s in saved.items()):
                for name, s in saved.items():
                    owner._buffers[name] = s.put_back(owner._buffers.get(name))


class _Saved:
    def __init__(self, buffer: Tensor) -> None:
        self.buffer, self.value, self.version = buffer, buffer.detach().clone(), buffer._version

    def changed(self, now: Tensor | None) -> bool:
        return now is not self.buffer or now._version != self.version

    def put_back(self, now: Tensor | None) -> Tensor:
        """The buffer with its old value: the same tensor again, unless the module has been moved meanwhile."""
        if now is not None and (now.device, now.dtype) != (self.buffer.device, self.buffer.dtype):
            self.buffer = now.detach().clone()
        self.buffer.copy_(self.value)
        self.version = self.buffer._version
        return self.buffer
