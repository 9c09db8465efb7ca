"""The transformer blocks of a backbone, found by structure, and sub-models made of some of them."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from lit_fed.adapters.positions import Positions
from lit_fed.adapters.structure import Path, is_tuner_layer, walk
from lit_fed.core.errors import ConfigError


class _Selection(nn.ModuleList):
    """The list that stands in for the full one while only some blocks run."""

    stack: "BlockStack"


class BlockStack:
    """The blocks of a backbone, of which all or some run.

    While some are selected, the module really holds fewer blocks: less compute, and less memory for activations,
    gradients and optimizer states. The weights are the same tensors, shared.

    Args:
        root: The module in which the list was found.
        path: Where it was found.
    """

    def __init__(self, root: nn.Module, path: Path) -> None:
        self.path = ".".join(path)
        full = root.get_submodule(self.path)
        if not isinstance(full, nn.ModuleList):
            raise TypeError(f"Expected {self.path!r} to be a ModuleList, but got {type(full).__name__}.")
        self._full = full
        self.blocks: tuple[nn.Module, ...] = tuple(full)
        self._places = [(m, name) for m in root.modules() for name, child in m._modules.items() if child is full]
        self._positions = Positions(root, path, self.blocks)
        self._selected = tuple(range(len(self.blocks)))
        self.on_select: Callable[[Collection[int]], None] | None = None
        """Called by `select` with the blocks that run; not by `selecting`, which is for a moment."""
        self.first_token_alone = False
        """Whether the pass that goes on reads no other token of the last block that runs, which may leave them out."""

    def __len__(self) -> int:
        """How many blocks the full model has."""
        return len(self.blocks)

    @property
    def selected(self) -> tuple[int, ...]:
        """The blocks that run now."""
        return self._selected

    @property
    def last(self) -> nn.Module:
        """The one that runs last now, whoever has selected it."""
        parent, name = self._places[0]
        return parent._modules[name][-1]  # type: ignore[index]

    def select(self, indices: Sequence[int] | None, stand_ins: Mapping[int, nn.Module] | None = None) -> None:
        """Run only these blocks, in ascending order, gaps closed; `None` restores the original list object.

        Args:
            indices: The blocks.
            stand_ins: Modules that run in the place of some of them, by the block's index.

        Raises:
            ConfigError: If there are no indices, an index twice, or one the model does not have.
        """
        self._put_in_place(indices, stand_ins)
        if self.on_select is not None:
            self.on_select(self._selected)

    def _put_in_place(self, indices: Sequence[int] | None, stand_ins: Mapping[int, nn.Module] | None = None) -> None:
        wanted = tuple(range(len(self))) if indices is None else self._checked(indices)
        present = self._places[0][0]._modules[self._places[0][1]]
        training = present.training if present is not None else True
        if indices is None:
            stand_in: nn.ModuleList = self._full
        else:
            stand_in = _Selection((stand_ins or {}).get(i, self.blocks[i]) for i in wanted)
            stand_in.stack = self
        for parent, name in self._places:
            parent._modules[name] = stand_in
        stand_in.training = training
        for i in wanted:  # a block that was left out has missed the calls of train() and eval()
            if self.blocks[i].training != training:
                self.blocks[i].train(training)
        self._positions.renumber(wanted)
        self._selected = wanted

    @contextmanager
    def selecting(
        self, indices: Sequence[int] | None, stand_ins: Mapping[int, nn.Module] | None = None
    ) -> Iterator[None]:
        """Select for a scope; afterwards the selection is what it was before."""
        before = self._selected
        self._put_in_place(indices, stand_ins)
        try:
            yield
        finally:
            self._put_in_place(None if len(before) == len(self) else before)

    def block_bytes(self) -> tuple[int, ...]:
        """Bytes of the frozen weights of each block: parameters and buffers that are not an adapter's."""
        return tuple(
            sum(
                tensor.numel() * tensor.element_size()
                for place in walk(block)
                for tensor in (*place.module._parameters.values(), *place.module._buffers.values())
                if tensor is not None
            )
            for block in self.blocks
        )

    def _checked(self, indices: Sequence[int]) -> tuple[int, ...]:
        if not indices or len(set(indices)) < len(indices) or not all(0 <= i < len(self) for i in indices):
            raise ConfigError(
                f"Expected `blocks` to be one or more different indices from 0 to {len(self) - 1}, but got "
                f"{list(indices)}. The model has {len(self)} blocks, at `{self.path}`."
            )
        return tuple(sorted(indices))


def find_blocks(module: nn.Module) -> BlockStack | None:
    """Find the backbone's blocks: the largest `ModuleList` of two or more equal entries.

    Entries are equal if they have the same class and, adapters aside, the same parameter names and shapes. The size of
    a list is the number of its parameters; of lists within each other the outer one counts. If some lists hold PEFT
    layers, only those are considered: a frozen second model beside the tuned one is not the backbone.

    Args:
        module: A bare model, a `PeftModel`, or a `LightningModule` around either. While blocks are selected, the stack
            that selected them is returned.

    Returns:
        The blocks, or `None` if there are none, or if two lists of the same size could be meant.
    """
    return _search(module)[0]


def require_blocks(module: nn.Module) -> BlockStack:
    """Find the blocks, or say why not.

    Raises:
        ConfigError: If there are none; names the lists that were seen.
    """
    stack, seen = _search(module)
    if stack is None:
        lists = "; ".join(seen) if seen else "none"
        raise ConfigError(
            f"Expected `model` to hold its blocks in one ModuleList of two or more equal entries, but got "
            f"{type(module).__name__} with these: {lists}. Change the model, or choose a method that runs all blocks."
        )
    return stack


def _search(module: nn.Module) -> tuple[BlockStack | None, list[str]]:
    """The blocks if they were found, and a line about each `ModuleList` that was seen."""
    found: list[tuple[int, bool, Path]] = []
    seen: list[str] = []
    for place in walk(module):
        if isinstance(place.module, _Selection):
            return place.module.stack, []
        if not isinstance(place.module, nn.ModuleList):
            continue
        path = ".".join(place.path)
        if len(place.module) < 2:
            seen.append(f"`{path}` (fewer than two entries)")
        elif len({_signature(block) for block in place.module}) > 1:
            seen.append(f"`{path}` (entries differ in class or in parameter shapes)")
        elif not (size := sum(_num_parameters(block) for block in place.module)):
            seen.append(f"`{path}` (no parameters)")
        elif not any(place.path[: len(outer)] == outer for _, _, outer in found):  # the outer one comes first
            found.append((size, any(is_tuner_layer(m) for m in place.module.modules()), place.path))
            seen.append(f"`{path}` ({len(place.module)} equal entries, {size} parameters)")
    if any(tuned for _, tuned, _ in found):
        found = [candidate for candidate in found if candidate[1]]
    largest = max((size for size, _, _ in found), default=0)
    best = [path for size, _, path in found if size == largest]
    return (BlockStack(module, best[0]) if len(best) == 1 else None), seen


def _signature(block: nn.Module) -> tuple[Any, ...]:
    """What two blocks must have in common to stand in each other's place."""
    shapes = [
        (place.name, name, tuple(parameter.shape))
        for place in walk(block)
        for name, parameter in place.module._parameters.items()
        if parameter is not None
    ]
    return type(block), tuple(shapes)


def _num_parameters(block: nn.Module) -> int:
    return sum(p.numel() for place in walk(block) for p in place.module._parameters.values() if p is not None)
