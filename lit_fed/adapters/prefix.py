"""The first blocks of a forward pass, up to where something is trained: run once for an example, then recalled.

Below the lowest block that is trained, a forward pass is a fixed function of what enters the first block: whoever
remembers what left the last of these blocks need not run them again. `Prefix` stands in their way and asks a `Memory`,
which says how far the prefix reaches, remembers, and forgets.

An example is known by what the first block is given of it: a digest of its hidden states, and of everything else there
(masks, positions). So nothing is assumed about the data: an example that is augmented anew is another example.

What cannot be left out is run, and the memory is told why. It is seen from what happens, not from names: the prefix
draws random numbers (dropout), its buffers change, hooks look into it, its blocks return more than hidden states, or
the model does more with what a block returns than hand it to the next one.

Assumption: what a block is given beside the hidden states follows from what the first block is given.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves

from lit_fed.adapters.blocks import BlockStack
from lit_fed.core.seeding import random_state


class Remembered(Protocol):
    """What is remembered of one fixed function of an example: rows by key."""

    def recall(self, keys: Sequence[bytes], device: torch.device) -> Tensor | None:
        """The rows (B, ...) of these B examples, or `None` if they have to be computed."""
        ...

    def keep(self, keys: Sequence[bytes], rows: Tensor) -> None:
        """Remember rows (B, ...) that were computed, as one batch, after `recall` had none."""
        ...


class Memory(Protocol):
    """What a `Prefix` asks."""

    def prefix(self, running: tuple[int, ...]) -> tuple[tuple[int, ...], Remembered] | None:
        """The first of these blocks that may be left out in the pass that begins now, and what is known of them."""
        ...

    def refuse(self, reason: str) -> None:
        """Be told why nothing can be left out."""
        ...


@dataclass
class _Pass:
    """A forward pass on its way through the prefix."""

    blocks: tuple[int, ...]
    known: Remembered
    keys: list[bytes]
    recalled: Tensor | None
    random: tuple[object, ...] = ()
    buffers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Each buffer of the blocks, and what was in it at the beginning."""
    returned: list["weakref.ref[Tensor]"] = field(default_factory=list)
    """What the blocks have returned so far."""


class Prefix:
    """Stands before the forward of every block; see above.

    Args:
        stack: The blocks.
        memory: Whom it asks.
    """

    def __init__(self, stack: BlockStack, memory: Memory) -> None:
        self._stack, self._memory = stack, memory
        self._now: _Pass | None = None
        self._aside = False

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """A scope in which forward passes go through it. The blocks stay the objects they are."""
        own = [block.__dict__.get("forward") for block in self._stack.blocks]
        for i, block in enumerate(self._stack.blocks):
            block.__dict__["forward"] = partial(self._forward, i, block.forward)
        try:
            yield
        finally:
            self._now = None
            for block, forward in zip(self._stack.blocks, own, strict=True):
                del block.__dict__["forward"]
                if forward is not None:
                    block.__dict__["forward"] = forward

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A scope in which all blocks run, and nothing is remembered."""
        before, self._aside = self._aside, True
        try:
            yield
        finally:
            self._aside = before

    def _forward(self, block: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        running = self._stack.selected
        if block == running[0]:
            self._now = None if self._aside else self._begin(running, args, kwargs)
        now = self._now
        if now is None:
            return forward(*args, **kwargs)
        if now.recalled is not None:
            if block == now.blocks[-1]:
                self._now = None
            return now.recalled
        if not self._goes_straight_on(now, _hidden((args, kwargs))):
            return forward(*args, **kwargs)
        if block not in now.blocks:
            self._end(now)
            return forward(*args, **kwargs)
        output = forward(*args, **kwargs)
        if not isinstance(output, Tensor) or len(output) != len(now.keys) or not output.is_contiguous():
            self._refuse("blocks return something else than hidden states, a row an example")
            return output
        now.returned.append(weakref.ref(output))
        if block == running[-1]:
            self._end(now)
        return output

    def _begin(self, running: tuple[int, ...], args: Any, kwargs: Any) -> _Pass | None:
        asked, hidden = self._memory.prefix(running), _hidden((args, kwargs))
        if asked is None or hidden is None or hidden.requires_grad:
            return None
        blocks, known = asked
        first_alone = self._stack.first_token_alone and blocks[-1] == running[-1]
        keys = row_keys((args, kwargs), len(hidden), least_dims=2, about="first token" if first_alone else "")
        if keys is None:
            self._refuse("blocks are given something else than tensors and numbers")
            return None
        if (recalled := known.recall(keys, hidden.device)) is not None:
            return _Pass(blocks, known, keys, recalled)
        modules = [module for block in blocks for module in self._stack.blocks[block].modules()]
        if any(module._forward_hooks for module in modules):
            self._refuse("forward hooks look into the blocks")
            return None
        buffers = [(b, b.clone()) for module in modules for b in module._buffers.values() if b is not None]
        return _Pass(blocks, known, keys, None, random_state(hidden.device), buffers)

    def _goes_straight_on(self, now: _Pass, entering: Tensor | None) -> bool:
        """Whether the model has handed what a block returned to the next one, and kept nothing of it."""
        if now.returned and now.returned[-1]() is not entering:
            self._refuse("the model changes hidden states between its blocks")
        elif any(one() is not None for one in now.returned[:-1]):
            self._refuse("the model keeps hidden states between its blocks")
        return self._now is not None

    def _end(self, now: _Pass) -> None:
        self._now, output = None, now.returned[-1]()
        assert output is not None
        if random_state(output.device) != now.random:
            self._refuse("random numbers are drawn in frozen blocks (dropout)")
        elif output.requires_grad or not all(torch.equal(buffer, before) for buffer, before in now.buffers):
            self._refuse("frozen blocks change while a client trains")
        else:
            now.known.keep(now.keys, output)

    def _refuse(self, reason: str) -> None:
        self._now = None
        self._memory.refuse(reason)


def row_keys(given: Any, rows: int, least_dims: int = 1, about: str = "") -> list[bytes] | None:
    """A digest for each example of all tensors in a tree, and of the numbers beside them.

    Args:
        given: Tensors with a row for each example, and anything that is the same for all of them.
        rows: How many examples they are.
        least_dims: Tensors with fewer dimensions are the same for all, even if there are as many entries as rows.
        about: Goes into every key.

    Returns:
        `None` if there is something in the tree that is neither tensor, number nor text.
    """
    leaves, spec = tree_flatten(given)
    shared, by_row = sha256(f"{about}|{spec}".encode()), []  # processors have it built in
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            one_each = leaf.ndim >= least_dims and len(leaf) == rows
            shape = tuple(leaf.shape[1:]) if one_each else tuple(leaf.shape)
            shared.update(f"|{one_each}{shape}{leaf.dtype}".encode())
            values = leaf.detach().cpu().contiguous().reshape(rows if one_each else 1, -1).view(torch.uint8).numpy()
            if one_each:
                by_row.append(values)
            else:
                shared.update(values.tobytes())
        elif leaf is None or isinstance(leaf, (bool, int, float, str)):
            shared.update(f"|{leaf!r}".encode())
        else:
            return None
    keys = []
    for row in range(rows):
        key = shared.copy()
        for values in by_row:
            key.update(values[row].data)
        keys.append(key.digest())
    return keys


def _hidden(given: Any) -> Tensor | None:
    """The hidden states among what a block is given: the first tensor with a row for each example."""
    return next((leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor) and leaf.ndim > 1), None)
