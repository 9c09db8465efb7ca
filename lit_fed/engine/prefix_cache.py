"""Nothing computed twice: what a client's training cannot change is computed once for an example, and used again.

Two things are. In every forward pass, the hidden states that leave the last block below those that are trained (see
`lit_fed.adapters.prefix`). And what a step is asked for of a slot of which nothing is trained, or of the base model:
its logits and features, if they are one vector an example and without dropout.

A client's rows live as long as what computes them: the same blocks with the same adapter. What a turn has not used is
forgotten when the next one begins. Up to a bound they are in memory, beyond it in files.

Results are the same to the bit, with and without: rows are looked up by all that goes in, and used where it was found
to make no difference (see `lit_fed.engine.shelf`). Where nothing can be used again (examples that are augmented anew,
dropout below what is trained) the cache switches itself off, and says so, once.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lit_fed.adapters.prefix import Prefix, row_keys
from lit_fed.adapters.state import AdapterView
from lit_fed.algorithms.base import GLOBAL
from lit_fed.core.names import block_of, exit_of, is_added, is_gate, is_head
from lit_fed.core.seeding import random_state
from lit_fed.core.tree import digest
from lit_fed.core.types import Client
from lit_fed.engine.row_store import Room, RowStore
from lit_fed.engine.shelf import Shelf, Trials

T = TypeVar("T")
_Fixed: TypeAlias = tuple[tuple[int, ...], Shelf]


class PrefixCache:
    """What one process remembers of its clients' training; a `lit_fed.adapters.prefix.Memory`.

    Args:
        view: The module's adapter; it has blocks.
        device: Where the module is.
        limit_bytes: The most to hold in memory.
        folder: Where files are to be.
    """

    def __init__(self, view: AdapterView, device: torch.device, limit_bytes: int, folder: Path) -> None:
        assert view.blocks is not None
        self._view, self._device, self._room = view, device, Room(limit_bytes, folder)
        self._prefix, self._trials = Prefix(view.blocks, self), Trials()
        self._client = Client("", 0)
        self._shelves: dict[str, dict[str, Shelf]] = {}  # by client, then by what computes the rows
        self._used: set[str] = set()
        self._fixed: dict[Hashable, _Fixed | None] = {}  # within one training
        self._in_parts: set[str] = set()
        self._widths: dict[str, list[int]] = {}
        self._at_first: tuple[object, ...] | None = None
        self.off: str | None = None
        """Why it has switched itself off."""

    def begin(self, client: Client) -> None:
        """A client's turn begins: forget what the last turn's client did not use."""
        shelves = self._shelves.get(self._client.id, {})
        for name in shelves.keys() - self._used:
            shelves.pop(name).close()
        self._client, self._used = client, set()

    @contextmanager
    def training(self) -> Iterator[None]:
        """A scope in which the same tensors are trained all the time, and nobody else changes those that are not."""
        self._fixed.clear()
        if self.off is not None:
            yield
            return
        self._at_first = random_state(self._device)
        with self._prefix.in_place():
            yield
        self._fixed.clear()

    def aside(self) -> AbstractContextManager[None]:
        """A scope in which nothing is recalled, and nothing remembered."""
        return self._prefix.aside()

    def prefix(self, running: tuple[int, ...]) -> _Fixed | None:
        """The first of these blocks, up to where something is trained, and what is known of them."""
        slot = self._view.active
        if self.off is None and ("hidden", slot, running) not in self._fixed:
            trained = {block_of(name) for name in self._trained(slot) if not _beside(name)}
            first = next((at for at, block in enumerate(running) if block in trained), len(running))
            blocks = () if None in trained or self._view.is_folded else running[:first]
            self._fixed["hidden", slot, running] = self._known("hidden", slot, blocks) if blocks else None
        return self._if_data_are_fixed(self._fixed.get(("hidden", slot, running)))

    def whole(self, name: str, slot: str | None, batch: Any, compute: Callable[[], T]) -> T:
        """What a step is asked for of a slot: computed, or recalled if this training does not change it.

        Args:
            name: What it is asked for.
            slot: The slot; `None` is the base model.
            batch: The batch.
            compute: Gives a tensor, or several, with a row for each example.
        """
        found = None if torch.is_grad_enabled() or name in self._in_parts else self._whole(name, slot)
        first = next((leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim), None)
        keys = row_keys(batch, len(first)) if found is not None and first is not None else None
        if found is None or keys is None:
            return compute()
        if (recalled := found[1].recall(keys, self._device)) is not None:
            parts: Any = [part.contiguous() for part in recalled.split(self._widths[name], 1)]
            return cast(T, parts[0] if len(parts) == 1 else tuple(parts))
        before = random_state(self._device)
        with self._prefix.aside():
            result: Any = compute()
        parts = [result] if isinstance(result, Tensor) else list(result)
        if random_state(self._device) != before or any(p.ndim != 2 or p.dtype != parts[0].dtype for p in parts):
            self._in_parts.add(name)  # dropout behind the blocks, or a vector for each token: hidden states take less
        else:
            self._widths[name] = [part.shape[1] for part in parts]
            found[1].keep(keys, torch.cat(parts, 1))
        return cast(T, result)

    def refuse(self, reason: str) -> None:
        """Switch it off, and say why."""
        if self.off is None:
            self.off = reason
            self.close()
            rank_zero_info(f"The cache (`federation.cache`) is off in this run: {reason}.")

    def close(self) -> None:
        """Forget everything."""
        for shelf in [shelf for shelves in self._shelves.values() for shelf in shelves.values()]:
            shelf.close()
        self._shelves.clear()
        self._fixed.clear()
        self._room.clear()

    def _whole(self, name: str, slot: str | None) -> _Fixed | None:
        running = self._view.blocks.selected if self._view.blocks is not None else ()
        if self.off is None and (name, slot, running) not in self._fixed:
            changes = self._view.is_folded or self._trained(slot)
            self._fixed[name, slot, running] = None if changes else self._known(name, slot, running)
        return self._if_data_are_fixed(self._fixed.get((name, slot, running)))

    def _trained(self, slot: str | None) -> list[str]:
        """What is trained of all that a forward pass of a slot goes through."""
        names = [*(self._view.trained(slot) if slot is not None else ()), *self._plain(self._view.trained(GLOBAL))]
        return [name for name in names if not is_gate(name) and exit_of(name) is None]

    def _known(self, name: str, slot: str | None, blocks: tuple[int, ...]) -> _Fixed:
        """These blocks, and what is known of a function of them with the adapter as it is now."""
        held = {**self._plain(self._view.tensors(GLOBAL)), **(self._view.tensors(slot) if slot is not None else {})}
        goes_in = {None, *blocks}
        adapter = {
            key: tensor
            for key, tensor in held.items()
            if block_of(key) in goes_in and not is_gate(key) and exit_of(key) is None
            and not (name == "hidden" and _beside(key))
        }  # fmt: skip
        computes = digest({"function": [name, slot, list(blocks)], "adapter": adapter})
        shelves = self._shelves.setdefault(self._client.id, {})
        if computes not in shelves:
            rows = RowStore(self._room)
            # What is multiplied by zeros (LoRA that is not trained yet) shows no difference, so it proves nothing.
            zeros = frozenset(key for key, tensor in adapter.items() if not tensor.any())
            function = (name, slot is None, blocks, zeros)
            shelves[computes] = Shelf(function, rows, self._trials, self._client.num_examples, self.refuse)
        self._used.add(computes)
        return blocks, shelves[computes]

    def _plain(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those that PEFT does not hold: they are in every slot's forward pass."""
        names = set(self._view.plain_names)
        return {name: tensor for name, tensor in tensors.items() if name in names}

    def _if_data_are_fixed(self, found: _Fixed | None) -> _Fixed | None:
        """What was found; nothing, if the first batch came with random numbers."""
        if found is not None and self._at_first is not None:
            if random_state(self._device) != self._at_first:
                self.refuse("random numbers are drawn before the model's blocks (augmentation, or dropout there)")
            self._at_first = None
        return found if self.off is None else None


def _beside(name: str) -> bool:
    """Whether blocks compute the same of the same hidden states whatever a tensor is: it is before or behind them."""
    return is_head(name) or is_added(name)
