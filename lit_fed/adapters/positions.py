"""What a Hugging Face model knows of the positions of its blocks, kept true while only some of them run.

Its forward pass iterates over the blocks it holds, but it also keeps their number and kinds in its configuration
(``num_hidden_layers``, ``layer_types``) and each block's index in the block (``layer_idx``), where the key-value cache
looks for it. Without this, the third block run as the second would get the second's attention mask, and a cache would
have holes.
"""

from typing import Any

from torch import nn

from lit_fed.adapters.structure import Path


class Positions:
    """The positions of blocks, as the model around them has noted them down.

    Args:
        root: The module that holds everything.
        path: Where the list of blocks is in it.
        blocks: All blocks.
    """

    def __init__(self, root: nn.Module, path: Path, blocks: tuple[nn.Module, ...]) -> None:
        self._num_blocks = len(blocks)
        self._indexed = [
            (module, i)
            for i, block in enumerate(blocks)
            for module in block.modules()
            if type(module.__dict__.get("layer_idx")) is int and module.__dict__["layer_idx"] == i
        ]
        self._configs = [(config, per_block(config, len(blocks))) for config in _configs(root, path, len(blocks))]

    def renumber(self, selected: tuple[int, ...]) -> None:
        """Make the notes true for these blocks, run in this order; for all of them they say what was there at first."""
        position = {block: at for at, block in enumerate(selected)}
        for module, block in self._indexed:
            module.__dict__["layer_idx"] = position.get(block, block)
        for config, notes in self._configs:
            config.num_hidden_layers = len(selected)
            for key, kinds in notes.items():
                all_run = len(selected) == self._num_blocks
                setattr(config, key, kinds if all_run else type(kinds)(kinds[i] for i in selected))


def _configs(root: nn.Module, path: Path, num_blocks: int) -> list[Any]:
    """The distinct configurations of the modules from the root to the blocks that give this number of blocks."""
    configs: dict[int, Any] = {}
    for depth in range(len(path) + 1):
        config = root.get_submodule(".".join(path[:depth])).__dict__.get("config")
        if getattr(config, "num_hidden_layers", None) == num_blocks:
            configs[id(config)] = config
    return list(configs.values())


def per_block(config: Any, num_blocks: int) -> dict[str, Any]:
    """What a configuration lists for each block: kinds of attention, kinds of feed-forward layer."""
    return {
        key: value
        for key, value in vars(config).items()
        if "layer" in key
        and isinstance(value, (list, tuple))
        and len(value) == num_blocks
        and all(isinstance(kind, str) for kind in value)
    }
