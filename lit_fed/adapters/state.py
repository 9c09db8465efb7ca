"""A module's adapter as dictionaries of tensors: read, written, switched and frozen by slot and canonical name."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lit_fed.adapters.active import active_slot, switch
from lit_fed.adapters.blocks import BlockStack, find_blocks, require_blocks
from lit_fed.adapters.buffers import BufferSnapshot
from lit_fed.adapters.exits import EarlyExits
from lit_fed.adapters.fold import Folding
from lit_fed.adapters.inject import inject_slot
from lit_fed.adapters.inventory import Inventory, some, trained_outside_peft
from lit_fed.adapters.layout import GLOBAL, check_not_merged
from lit_fed.adapters.transfer import copy_into, to_cpu
from lit_fed.core.errors import ConfigError, StateMismatchError


class AdapterView:
    """The part of a module that is trained and exchanged.

    What belongs to it is read from the module's structure, once. PEFT's layers hold one set of tensors for each slot.
    Any other parameter with ``requires_grad`` at this moment belongs to slot ``"global"`` alone: in a module without
    PEFT that is all there is, and beside PEFT it may be a head of the user's own. Floating-point buffers of a layer
    with such parameters, or in a head that PEFT holds (running statistics), are exchanged with them.

    Args:
        module: A `LightningModule`, a `PeftModel`, or any other module.

    Raises:
        ConfigError: If nothing in the module is trained, or its adapters are merged.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.blocks: BlockStack | None = find_blocks(module)
        self._snapshot: BufferSnapshot | None = None
        with all_blocks(self.blocks):
            check_not_merged(module)
            self._plain_ids = trained_outside_peft(module)
            self._found = Inventory(module, self.blocks, self._plain_ids)
        if not self.names:
            raise ConfigError(
                f"Expected {type(module).__name__} to have parameters to train, but got none with `requires_grad`. "
                "Give it LoRA with `lit_fed.adapters.add_lora_`, or unfreeze some of its parameters."
            )
        self._active, agreed = active_slot(self._found.layers, self._found.adapters)
        if not agreed:
            self.use(GLOBAL)
        self._folding = Folding(self._found.lora_layers, self._found.adapters.get(GLOBAL))

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots there are, ``"global"`` first."""
        return tuple(sorted(self._found.layouts, key=lambda slot: (slot != GLOBAL, slot)))

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names of the state of slot ``"global"``, sorted: parameters, and buffers exchanged with them."""
        return tuple(self._found.layouts[GLOBAL])

    @property
    def plain_names(self) -> tuple[str, ...]:
        """The names of what PEFT does not hold; they are in slot ``"global"`` alone."""
        return tuple(self._found.plain)

    @cached_property
    def exits(self) -> EarlyExits:
        """The module's depths, to run it to several at once.

        Raises:
            ConfigError: If it has no blocks.
        """
        return EarlyExits(self.module, self.blocks or require_blocks(self.module))

    @property
    def peft_layers(self) -> list[tuple[str, Any]]:
        """PEFT's layers and the wrappers of its heads, by their place in the module."""
        return self._found.peft_layers

    @property
    def lora_layers(self) -> dict[str, Any]:
        """Canonical name -> PEFT's layer, of every layer that has LoRA in slot ``"global"``."""
        return self._found.lora_layers

    @property
    def rank(self) -> int:
        """LoRA rank of slot ``"global"``, the largest if layers differ; 0 without LoRA."""
        return self._folding.rank

    @property
    def active(self) -> str | None:
        """The slot that `use` chose last."""
        return self._active

    def adapter_name(self, slot: str = GLOBAL) -> str | None:
        """PEFT's name of the adapter in a slot; `None` for a module without PEFT."""
        self._found.layout(slot)
        return self._found.adapters.get(slot)

    def parameters(self, slot: str = GLOBAL) -> dict[str, nn.Parameter]:
        """The live parameters of a slot, by sorted canonical names."""
        found = {name: entry.tensor for name, entry in self._found.layout(slot).items() if entry.trainable}
        return {name: tensor for name, tensor in found.items() if isinstance(tensor, nn.Parameter)}

    def tensors(self, slot: str = GLOBAL) -> dict[str, Tensor]:
        """The live tensors of a slot, parameters and exchanged buffers, by sorted canonical names."""
        return {name: entry.tensor for name, entry in self._found.layout(slot).items()}

    def owners(self, where: Callable[[str], bool], slot: str = GLOBAL) -> list[tuple[nn.Module, dict[str, str]]]:
        """The modules that hold some tensors of a slot, and of each: attribute -> canonical name."""
        found: dict[int, tuple[nn.Module, dict[str, str]]] = {}
        for name, entry in self._found.layout(slot).items():
            if where(name):
                found.setdefault(id(entry.owner), (entry.owner, {}))[1][entry.attribute] = name
        return list(found.values())

    def read(self, slot: str = GLOBAL, where: Callable[[str], bool] | None = None) -> dict[str, Tensor]:
        """Copy a slot's tensors to the CPU, in float32; nothing in the result shares memory with the module.

        Args:
            slot: The slot.
            where: Which tensors, by canonical name; `None` for all.
        """
        live = {name: tensor for name, tensor in self.tensors(slot).items() if where is None or where(name)}
        return dict(zip(live, to_cpu(list(live.values())), strict=True))

    @torch.no_grad()
    def write(self, state: Mapping[str, Tensor], slot: str = GLOBAL) -> None:
        """Copy tensors into a slot, in place; names that are absent keep their values.

        Raises:
            StateMismatchError: If a name or a shape does not fit; then nothing has been written.
        """
        self.check(state, slot)
        layout = self._found.layout(slot)
        copy_into([layout[name].tensor for name in state], list(state.values()))

    def check(self, state: Mapping[str, Tensor], slot: str = GLOBAL) -> None:
        """Raise `StateMismatchError` if a state has names or shapes that the slot has not."""
        layout = self._found.layout(slot)
        unknown = sorted(state.keys() - layout.keys())
        shapes = [
            f"{name!r} has shape {tuple(value.shape)} in place of {tuple(layout[name].tensor.shape)}"
            for name, value in state.items()
            if name in layout and value.shape != layout[name].tensor.shape
        ]
        problems = ([f"unknown are {some(unknown)}"] if unknown else []) + ([some(shapes)] if shapes else [])
        if problems:
            raise StateMismatchError(
                f"Expected a state for slot {slot!r} of {type(self.module).__name__}, but got one that does not fit: "
                f"{'; '.join(problems)}. It was made with another model or other LoRA settings."
            )

    def use(self, slot: str | None) -> None:
        """Make a slot the one that the forward pass runs with, and `None` the base model: no adapter, original heads.

        Changes nothing else, least of all ``requires_grad`` (PEFT's own `set_adapter` does). What PEFT does not hold
        has no second version and stays as it is.

        Raises:
            ConfigError: If there is no such slot, or no base model because the module has no PEFT adapter.
        """
        if slot is None and not self._found.adapters:
            raise ConfigError(
                "Expected a module with LoRA to run without its adapter, but got one without PEFT. "
                "Give it LoRA with `lit_fed.adapters.add_lora_`."
            )
        if slot is not None:
            self._found.layout(slot)
        switch(self._found.layers, self._found.adapters.get(slot) if slot is not None else None)
        self._active = slot

    def train_only(
        self,
        slot: str = GLOBAL,
        where: Callable[[str], bool] | None = None,
        beside: Mapping[str, Callable[[str], bool] | None] | None = None,
    ) -> None:
        """Let gradients flow to a slot's parameters for which ``where(name)`` holds, and to nothing else.

        Args:
            slot: The slot.
            where: Which of its parameters, by canonical name; `None` for all.
            beside: Other slots that are trained too -> which of their parameters.
        """
        for parameter in self._found.parameters:
            parameter.requires_grad_(False)
        for trained, chosen in {**(beside or {}), slot: where}.items():
            for name, parameter in self.parameters(trained).items():
                if chosen is None or chosen(name):
                    parameter.requires_grad_(True)

    def trained(self, slot: str = GLOBAL) -> dict[str, nn.Parameter]:
        """The live parameters of a slot that are to be trained, by sorted canonical names."""
        return {name: parameter for name, parameter in self.parameters(slot).items() if parameter.requires_grad}

    def add_slot(self, slot: str) -> None:
        """Add a slot: a PEFT adapter with the same configuration and the values of ``"global"``. It starts frozen.

        Raises:
            ConfigError: If the slot exists, or the module has no PEFT adapter, or trains what PEFT does not hold.
        """
        if not self._found.adapters or self._found.plain:
            raise ConfigError(self._found.no_slot(slot))
        if slot in self._found.layouts:
            raise ConfigError(f"Expected a new slot, but got {slot!r}; the module already has {list(self.slots)}.")
        active = self._active
        with all_blocks(self.blocks):
            inject_slot(self.module, slot, self._found.adapters[GLOBAL])
            self._found = Inventory(self.module, self.blocks, self._plain_ids)
        for parameter in self.parameters(slot).values():
            parameter.requires_grad_(False)
        self.write(self.tensors(GLOBAL), slot)  # live, so that it works on the meta device, too
        self.use(active)

    def fold(self, deltas: Mapping[str, Tensor]) -> None:
        """Make frozen weights the original plus these deltas, by canonical name; all others exactly the original.

        Raises:
            StateMismatchError: If a name or a shape does not fit; then nothing has been changed.
        """
        self._folding.fold(deltas)

    @property
    def is_folded(self) -> bool:
        """Whether anything is folded into frozen weights now."""
        return self._folding.is_folded

    def fold_problems(self) -> list[str]:
        """Why deltas cannot be folded into some of the layers with LoRA; see `lit_fed.adapters.fold`."""
        return self._folding.problems(self.module)

    def snapshot_buffers(self) -> None:
        """Note down the values of all buffers that are not exchanged, to be put back by `restore_buffers`."""
        exchanged = {(id(e.owner), e.attribute) for layout in self._found.layouts.values() for e in layout.values()}
        with all_blocks(self.blocks):
            self._snapshot = BufferSnapshot(self.module, exchanged)

    def restore_buffers(self) -> None:
        """Give all buffers that are not exchanged the values of the last snapshot (the first call takes it)."""
        if self._snapshot is None:
            self.snapshot_buffers()
        else:
            self._snapshot.restore()


def all_blocks(blocks: BlockStack | None) -> AbstractContextManager[None]:
    """A scope in which all blocks are in place, so that the module's structure can be read."""
    return nullcontext() if blocks is None else blocks.selecting(None)
