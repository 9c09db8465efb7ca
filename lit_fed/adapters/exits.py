"""Early exits: logits at several depths of a model from one pass, each depth with a head of its own.

An exit at depth d is the model cut off after the first d of the blocks that run, with a copy of the task head in the
place of the head. The module's own forward computes it, so that every architecture does what it does between its blocks
and its head (norm, pooling), whatever the module's class:

- The blocks run once, in one forward to the deepest exit. What comes out of each of them is kept.
- For each other exit the forward runs again, with the exit's head in the place of the task head. The exit's blocks do
  not run again but hand out what was kept, and gradients flow through it into them.

So only what stands around the blocks is computed once an exit: embeddings, norm, pooling, head; little beside the
blocks. Dropout before the blocks is drawn anew with it (which is seen only by a module that adds up its blocks' outputs
by itself), and running statistics there, which transformers have none of, move once an exit.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lit_fed.adapters.blocks import BlockStack, require_blocks
from lit_fed.adapters.layout import GLOBAL, ExitHeads, Namer, adapter_names, exit_heads
from lit_fed.adapters.structure import is_tuner_layer, is_wrapper
from lit_fed.core.errors import ConfigError
from lit_fed.core.names import EXITS


def attach_exits(module: nn.Module, depths: Iterable[int]) -> None:
    """Give a module a head for each of these depths, in its attribute ``exits``, in place of those it had.

    Each is a copy of the task head as it is now (of what is trained of it in slot ``"global"``) and is trained whole. A
    head of several parts is copied part by part. An `AdapterView` that is made afterwards exchanges them, under names
    like ``exits.4.weight``.

    Args:
        module: The outermost module: the `LightningModule`.
        depths: Numbers of blocks, from 1 to the model's; none takes the module's exits away.

    Raises:
        ConfigError: If the module has no such depth, no task head, LoRA in its head, or an ``exits`` of its own.
    """
    name, wanted = type(module).__name__, sorted(set(depths))
    if isinstance(getattr(module, EXITS, None), ExitHeads):
        delattr(module, EXITS)
    if not wanted:
        return
    if hasattr(module, EXITS):
        raise ConfigError(f"Expected {name} to have no attribute `{EXITS}` of its own, but it has. Rename it.")
    blocks = require_blocks(module)
    if not 1 <= wanted[0] <= wanted[-1] <= len(blocks):
        raise ConfigError(f"Expected exits after 1 to {len(blocks)} blocks of {name}, but got {wanted}.")
    adapter = adapter_names(module).get(GLOBAL)
    parts: list[Any] = [place.module for place in Namer(module, blocks, module).heads]
    trained = [part.modules_to_save[adapter] if is_wrapper(part) else part for part in parts]
    if not trained or any(is_tuner_layer(m) for part in trained for m in part.modules()):
        lack = "LoRA in it" if trained else "none"
        raise ConfigError(
            f"Expected {name} to have a task head that is trained in full, for exits to copy, but got {lack}. Name it "
            "in `lora.modules_to_save`, or return it from a method `head_module` of the module."
        )
    copies = {str(d): nn.ModuleDict({str(i): part for i, part in enumerate(copy.deepcopy(trained))}) for d in wanted}
    exits = ExitHeads(copies)
    for parameter in exits.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    module.add_module(EXITS, exits)


class EarlyExits:
    """Runs a module to several depths at once. See above.

    Args:
        module: The module, with or without heads for some depths.
        blocks: Its blocks.
    """

    def __init__(self, module: nn.Module, blocks: BlockStack) -> None:
        self._blocks, self._exits = blocks, exit_heads(module)
        self._heads = [place.module for place in Namer(module, blocks, module).heads]
        self._places = [
            (parent, name, part)
            for parent in module.modules()
            for name, child in parent._modules.items()
            for part, head in enumerate(self._heads)
            if child is head
        ]

    def logits(self, forward: Callable[[], Tensor], depths: Sequence[int]) -> list[Tensor]:
        """What the module gives at several depths, counted in blocks that run now; no other block is run.

        Args:
            forward: The module's forward on a batch.
            depths: The depths, in any order. One without a head of its own is given the task head.

        Raises:
            ConfigError: If a depth is not from 1 to the number of blocks that run.
        """
        running, order = self._blocks.selected, sorted(set(depths))
        if not order or not 1 <= order[0] <= order[-1] <= len(running):
            raise ConfigError(f"Expected exits after 1 to {len(running)} blocks that run, but got {list(depths)}.")
        again = running[: order[-2]] if len(order) > 1 else ()
        once = {block: _Once(self._blocks.blocks[block]) for block in again}
        found: dict[int, Tensor] = {}
        for depth in reversed(order):
            with self._blocks.selecting(running[:depth], once), self._head_of(depth):
                found[depth] = forward()
        return [found[depth] for depth in depths]

    @contextmanager
    def _head_of(self, depth: int) -> Iterator[None]:
        """A scope in which the head of a depth, if it has one, stands in the place of the task head."""
        own = list(self._exits[str(depth)].children()) if str(depth) in self._exits else self._heads
        try:
            for parent, name, part in self._places:
                parent._modules[name] = own[part]
            yield
        finally:
            for parent, name, part in self._places:
                parent._modules[name] = self._heads[part]


class _Once(nn.Module):
    """A block that runs once and then hands out what came out of it, in the form its architecture gives it.

    Around the block, not in it, so that a checkpointed block is seen as the model sees it. What else the model asks of
    the block, the block answers.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.training = block.training
        self._kept: tuple[Any, list[int]] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the block gave the first time.

        Raises:
            ConfigError: If the model has changed it since.
        """
        if self._kept is None:
            output = self.block(*args, **kwargs)
            self._kept = output, _versions(output)
        output, versions = self._kept
        if _versions(output) != versions:
            raise ConfigError(
                f"Expected the model around {type(self.block).__name__} to leave what a block returns as it is, for "
                "exits to use it again, but it changes it in place. Write `x = x + y` in place of `x += y`."
            )
        return output

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)


def _versions(output: Any) -> list[int]:
    """How often each tensor that a block returned was changed in place; nothing counts that in inference mode."""
    tensors = output if isinstance(output, tuple) else (output,)
    return [t._version for t in tensors if isinstance(t, Tensor) and not t.is_inference()]
