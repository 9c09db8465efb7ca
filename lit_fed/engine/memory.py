"""What a step of training takes in memory, counted tensor by tensor.

Counted are the bytes of all tensors that live at the same time: weights, adapter, batch, what is kept for backward,
temporaries, gradients, optimizer state. An operation's result counts from when it is made until nothing refers to it
any more. So the count does not depend on an allocator, on what ran before, or on the process; scratch memory inside a
kernel is not seen.

Assumption: two optimizer steps of the client with the most examples stand for all training (the second one has the
optimizer's state beside the activations). Batches with longer sequences than its first ones take more.
Assumption: blocks take alike, since they have parameters of the same shapes.
"""

import gc
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_fed.adapters.blocks import BlockStack
from lit_fed.adapters.buffers import BufferSnapshot
from lit_fed.adapters.state import AdapterView
from lit_fed.core.seeding import generator, isolated_rng
from lit_fed.core.types import Client
from lit_fed.data.federated import FederatedDataModule
from lit_fed.engine.local_loop import LocalLoop


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensors within its scope: of those given, and of those that operations make there.

    Args:
        device: Tensors elsewhere do not count.
        held: Tensors that are there at the beginning, and count.
    """

    def __init__(self, device: torch.device, held: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._device = device.type
        self._live: dict[int, weakref.finalize[..., torch.UntypedStorage]] = {}
        self._bytes = 0
        self.peak_bytes = 0
        """The most there were at once."""
        for storage in self._storages(list(held)).values():
            self._add(storage)
        self.held_bytes = self._bytes
        """What was there at the beginning."""

    def __enter__(self) -> Self:
        """Begin; within the scope cycles of references are not collected, because when that happens is up to chance."""
        gc.collect()
        self._collects = gc.isenabled()
        gc.disable()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """End; what is still alive is no longer followed."""
        super().__exit__(*error)
        if self._collects:
            gc.enable()
        for finalizer in self._live.values():
            finalizer.detach()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; storages of its result that are not among its arguments are new."""
        result = func(*args, **(kwargs or {}))
        # what `torch.tensor` reads from Python goes through an operation for the first time here
        given = {} if func is torch.ops.aten.lift_fresh.default else self._storages((args, kwargs))
        for key, storage in self._storages(result).items():
            if key not in given and key not in self._live:
                self._add(storage)
        return result

    def _storages(self, tree: Any) -> dict[int, torch.UntypedStorage]:
        tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.layout is torch.strided)
        storages = (tensor.untyped_storage() for tensor in tensors if tensor.device.type == self._device)
        return {storage._cdata: storage for storage in storages}

    def _add(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self._live[storage._cdata] = weakref.finalize(storage, self._drop, storage._cdata, size)
        self._bytes += size
        self.peak_bytes = max(self.peak_bytes, self._bytes)

    def _drop(self, key: int, size: int) -> None:
        del self._live[key]
        self._bytes -= size


def training_bytes(
    loop: LocalLoop, view: AdapterView, data: FederatedDataModule, client: Client, seed: int
) -> tuple[int, int]:
    """Measure what training takes, in bytes: without any block, and what each block adds.

    A client with n blocks takes at most ``fixed + n * each`` bytes. From two blocks on, the peak is the largest of sums
    that each grow evenly with n (when backward begins; at each block; when it ends; when the optimizer steps), so it is
    convex in n, and a line that is not below it at two blocks and at all of them is nowhere below. Measured are one
    block, two, half and all; the line has the slope from one to all, and goes through the highest of the four.

    The client trains as in its first turn: same batches, same random numbers, its own optimizer. Afterwards the module
    is as it was.

    Args:
        loop: Local training of the module, without callbacks; not shared by processes.
        view: The module's adapter; it has blocks.
        data: Everybody's data.
        client: Whose training to measure.
        seed: The federation's seed.
    """
    assert view.blocks is not None
    total = len(view.blocks)
    peaks: dict[int, int] = {}
    for number in sorted({1, 2, (total + 1) // 2, total}):
        loader = data.train_loader(client.id, generator(seed, "shuffle", 0, client.id, 0))
        with _as_it_was(view, view.blocks), isolated_rng(seed, "fit", 0, client.id, 0, 0):
            view.blocks.select(range(number))
            with LiveBytes(loop.fabric.device, [*loop.module.parameters(), *loop.module.buffers()]) as memory:
                loop.run(loader, client, 0, steps=2, epochs=None)
        peaks[number] = memory.peak_bytes
    each = -(-(peaks[total] - peaks[1]) // (total - 1))  # rounded up
    return max(peak - number * each for number, peak in peaks.items()), each


@contextmanager
def _as_it_was(view: AdapterView, blocks: BlockStack) -> Iterator[None]:
    """Put back what training changes: parameters, buffers, modes, and which blocks run."""
    module = view.module
    parameters = [(p, p.detach().clone()) for p in module.parameters() if p.requires_grad]
    buffers, modes = BufferSnapshot(module, ()), [(m, m.training) for m in module.modules()]
    try:
        yield
    finally:
        blocks.select(None)
        for parameter, value in parameters:
            parameter.data.copy_(value)
            parameter.grad = None
        buffers.restore()
        for child, training in modes:
            child.training = training
