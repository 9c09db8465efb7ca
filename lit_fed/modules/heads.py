"""What of a model is trained in full, and where LoRA goes unless one says otherwise."""

from torch import nn

from lit_fed.adapters.blocks import find_blocks
from lit_fed.core.errors import ConfigError
from lit_fed.modules.foundation import Loaded

__all__ = ["attention_linears", "trained_in_full"]


def trained_in_full(loaded: Loaded) -> list[str]:
    """The modules to be trained in full: the head, and whatever else has no trained weights, such as a new pooler.

    The head is what a Hugging Face model has beside its base model. A module that the checkpoint does not hold would be
    frozen noise if it were not trained.

    Raises:
        ConfigError: If the checkpoint lacks more than such a module.
    """
    model, untrained = loaded
    blocks = find_blocks(model)
    base = getattr(model, "base_model", model)
    if base is model:  # CLIP and SigLIP keep only the vision tower, which is not under the prefix they declare
        base = model.get_submodule(blocks.path.partition(".")[0]) if blocks else model
    children = [(name, child) for name, child in model.named_children() if any(True for _ in child.parameters())]
    heads = [name for name, child in children if child is not base] if base is not model else []
    for name in sorted(untrained):
        if any(_within(name, head) for head in heads):
            continue
        module = _largest_untrained(model, name, untrained)
        around_blocks = blocks is not None and (_within(module, blocks.path) or _within(blocks.path, module))
        inner = model.get_submodule(module).modules()
        if not module or around_blocks or any(isinstance(m, nn.Embedding) for m in inner):
            raise ConfigError(
                f"Expected the checkpoint in `model.model` to hold all of {type(model).__name__} but its head, but got "
                f"nothing that fits for `{name}`. Use another checkpoint, or drop settings from `model.config`."
            )
        heads.append(module)
    return heads


def attention_linears(model: nn.Module) -> list[str]:
    """The linear layers of the attention, as PEFT's ``target_modules``: where LoRA goes unless one says otherwise.

    Attention is a module whose class is called so, as all of Hugging Face's are.

    Raises:
        ConfigError: If there are none.
    """
    from transformers.pytorch_utils import Conv1D

    found: set[str] = set()
    outer: list[str] = []
    for path, module in model.named_modules():
        if "Attention" not in type(module).__name__ or isinstance(module, nn.MultiheadAttention):
            continue
        if any(_within(path, other) for other in outer):
            continue
        outer.append(path)
        attention = path.rpartition(".")[2]
        found |= {f"{attention}.{n}" for n, inner in module.named_modules() if isinstance(inner, (nn.Linear, Conv1D))}
    if not found:
        linears = sorted({path.rpartition(".")[2] for path, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise ConfigError(
            f"Expected {type(model).__name__} to have attention layers for LoRA, but got none. "
            f"Set `model.lora.target_modules` to some of its linear layers: {linears}."
        )
    return sorted(found)


def _largest_untrained(model: nn.Module, parameter: str, untrained: frozenset[str]) -> str:
    """The outermost module around a parameter that has no loaded parameter at all; empty if there is none."""
    path = parameter.rpartition(".")[0]
    best = ""
    while path and all(f"{path}.{name}" in untrained for name, _ in model.get_submodule(path).named_parameters()):
        best, path = path, path.rpartition(".")[0]
    return best


def _within(path: str, outer: str) -> bool:
    return path == outer or path.startswith(f"{outer}.")
