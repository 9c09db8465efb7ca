"""Blocks on disk: in memory are the frozen weights of those blocks that run, and no others.

A sub-model of c of L blocks computes with c blocks; this is what makes it take the memory of c blocks, too. Adapters
and buffers stay in memory: they are small, and change.
"""

from collections import Counter
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from lit_fed.adapters.state import AdapterView
from lit_fed.core.errors import StateMismatchError

_Weights = dict[str, tuple[nn.Parameter, tuple[int, ...]]]
"""Name in the block -> the parameter, and its strides when it is in memory."""


class BlockStore:
    """Keeps the frozen weights of every block in a file of its own while the scope lasts.

    A block that is not selected has no weights in memory: its parameters keep their shapes and hold one value, not a
    number. They are read again when the block is about to run, or its ``state_dict`` is asked for, and stay until
    another selection is made without it. Afterwards all blocks have their weights as before, to the bit.

    Parameters that blocks share with each other or with the rest of the model stay in memory, and so do those of
    classes of their own (quantized ones).

    Args:
        view: The module's adapter; it has blocks, and all of them are in memory.
        folder: Where the files ``block_<i>.safetensors`` are to be. The one who calls removes it.
    """

    def __init__(self, view: AdapterView, folder: Path) -> None:
        assert view.blocks is not None
        self._stack, self._folder = view.blocks, folder
        blocks = view.blocks.blocks
        inside = {id(module) for block in blocks for module in block.modules()}
        stays = {id(p) for m in view.module.modules() if id(m) not in inside for p in m.parameters(recurse=False)}
        stays |= {id(tensor) for slot in view.slots for tensor in view.tensors(slot).values()}
        holders = Counter(id(p) for block in blocks for p in block.parameters())
        self._frozen: list[_Weights] = [
            {
                name: (p, torch.empty_like(p, device="meta").stride())
                for name, p in block.named_parameters()
                if type(p) is nn.Parameter and id(p) not in stays and holders[id(p)] == 1
            }
            for block in blocks
        ]
        self._away: set[int] = set()
        self._hooks: list[RemovableHandle] = []

    def write(self) -> None:
        """Write the files; where several processes share the folder, in one of them."""
        from safetensors.torch import save_file

        self._folder.mkdir(parents=True, exist_ok=True)
        for block, frozen in enumerate(self._frozen):
            tensors = {name: p.detach().cpu().clone().contiguous() for name, (p, _) in frozen.items()}
            save_file(tensors, self._file(block))

    def __enter__(self) -> Self:
        """From now on, what is not selected is not in memory; the files have been written."""
        for block, module in enumerate(self._stack.blocks):
            bring = partial(self._bring, block)
            self._hooks += [module.register_forward_pre_hook(bring), module.register_state_dict_pre_hook(bring)]
        self._stack.on_select = self._release
        return self

    def __exit__(self, *error: Any) -> None:
        """Read what is not in memory, and do no more."""
        self._stack.on_select = None
        for hook in self._hooks:
            hook.remove()
        for block in range(len(self._frozen)):
            self._bring(block)

    def _release(self, selected: Collection[int]) -> None:
        for block in set(range(len(self._frozen))) - self._away - set(selected):
            for p, _ in self._frozen[block].values():
                nothing = torch.full((), torch.nan if p.is_floating_point() else 0).to(p.device, p.dtype)
                p.data = nothing.expand(p.shape)
            self._away.add(block)

    def _bring(self, block: int, *_: Any) -> None:
        if block not in self._away:
            return
        from safetensors import SafetensorError, safe_open

        try:
            # a weight made in inference mode could not be trained through later
            with torch.inference_mode(False), safe_open(self._file(block), framework="pt") as file:
                for name, (p, stride) in self._frozen[block].items():
                    # copied out of the mapped file: kernels may round otherwise where memory is not aligned
                    room = torch.empty_strided(p.shape, stride, dtype=p.dtype, device=p.device)
                    p.data = room.copy_(file.get_tensor(name))
        except (OSError, SafetensorError) as error:
            raise StateMismatchError(
                f"Expected `{self._file(block)}` to hold the frozen weights of block {block} until the end of the run, "
                f"but got: {error}. Keep the folder while the run goes on, or do without `federation.offload_blocks`."
            ) from error
        self._away.discard(block)

    def _file(self, block: int) -> Path:
        return self._folder / f"block_{block}.safetensors"
