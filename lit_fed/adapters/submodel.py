"""A sub-model on a machine that never has the whole model in memory."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lit_fed.adapters.positions import per_block
from lit_fed.core.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    Model = TypeVar("Model", bound=PreTrainedModel)


def load_submodel(kind: "type[Model]", folder: str | Path, blocks: Sequence[int], **overrides: Any) -> "Model":
    """Load some blocks of a Hugging Face model from its folder, and what is in no block; no other weight is read.

    The result computes what the whole model does with these blocks selected (`BlockStack.select`). Its own are numbered
    from 0, and so are the names of its adapter: `lit_fed.core.names.in_block` turns those of the whole model into them,
    and back.

    Which weights are a block's is read from their names: those that number 0 to L - 1 at one place.

    Args:
        kind: The model's class, such as ``transformers.ViTForImageClassification``; not an auto class.
        folder: A folder that ``save_pretrained`` has written: weights as safetensors, in one file or in shards.
        blocks: Indices in the whole model, ascending.
        **overrides: Settings of the configuration, such as ``num_labels``. A head of another size is drawn anew, from
            the global generators.

    Raises:
        ConfigError: If the model has no such blocks, or the folder does not hold weights of such a model.
    """
    from safetensors import safe_open

    folder = Path(folder)
    config: Any = kind.config_class.from_pretrained(folder, **overrides)  # type: ignore[union-attr]
    total, chosen = int(config.num_hidden_layers), list(blocks)
    if not chosen or chosen != sorted({*chosen} & {*range(total)}):
        raise ConfigError(
            f"Expected `blocks` to be one or more different indices from 0 to {total - 1}, ascending, but got {chosen}."
        )
    files = _files(folder)
    numbered = _block_prefix(files, total, folder)
    positions = {f"{numbered}{block}.": f"{numbered}{at}." for at, block in enumerate(chosen)}
    state = {}
    for name, file in files.items():
        inside = re.match(rf"{re.escape(numbered)}\d+\.", name)
        if inside is None or inside[0] in positions:
            with safe_open(file, framework="pt") as weights:
                renamed = positions[inside[0]] + name.removeprefix(inside[0]) if inside else name
                state[renamed] = weights.get_tensor(name)
    for key, kinds in per_block(config, total).items():
        setattr(config, key, type(kinds)(kinds[block] for block in chosen))
    config.num_hidden_layers = len(chosen)
    loaded: Any = kind.from_pretrained(
        None, config=config, state_dict=state, ignore_mismatched_sizes=True, output_loading_info=True
    )
    model: Model = loaded[0]
    info = loaded[1]
    drawn = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    if lost := sorted(name for name in drawn if re.search(r"\.\d+\.", name)):
        raise ConfigError(f"Expected {folder} to hold the blocks of a {kind.__name__}, but {lost[:3]} are not there.")
    return model


def _files(folder: Path) -> dict[str, Path]:
    """Name of a weight -> the file it is in."""
    from safetensors import safe_open

    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        shards: dict[str, str] = json.loads(index.read_text())["weight_map"]
        return {name: folder / shard for name, shard in shards.items()}
    if not single.is_file():
        raise ConfigError(f"Expected {folder} to hold `model.safetensors`, whole or in shards, but it does not.")
    with safe_open(single, framework="pt") as weights:
        return dict.fromkeys(weights.keys(), single)


def _block_prefix(names: Iterable[str], total: int, folder: Path) -> str:
    """What stands before a block's number in the names of its weights."""
    numbers: dict[str, set[int]] = {}
    for name in names:
        if found := re.match(r"((?:.*?\.)??)(\d+)\.", name):
            numbers.setdefault(found[1], set()).add(int(found[2]))
    prefixes = [prefix for prefix, seen in numbers.items() if seen == set(range(total))]
    if len(prefixes) != 1:
        raise ConfigError(
            f"Expected the weights in {folder} to be numbered from 0 to {total - 1} at one place, but got {prefixes}."
        )
    return prefixes[0]
