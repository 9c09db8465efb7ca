"""How PEFT holds adapters in a module, read from its classes, and the module's own structure without them.

PEFT takes seconds to import. Where it has not been imported no module can hold a PEFT layer, so that these functions
look it up among the loaded modules and never import it.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

Path = tuple[str, ...]


def _loaded(module_name: str, class_name: str) -> type[Any] | tuple[()]:
    """A class if its Python module is loaded, else what `isinstance` takes for "none"."""
    found: type[Any] | tuple[()] = getattr(sys.modules.get(module_name), class_name, ())
    return found


def is_tuner_layer(module: nn.Module) -> bool:
    """Whether a module is one that PEFT put in the place of a layer (for LoRA: base layer, A and B of each slot)."""
    return isinstance(module, _loaded("peft.tuners.tuners_utils", "BaseTunerLayer"))


def is_wrapper(module: nn.Module) -> bool:
    """Whether a module is one that PEFT put around a layer to train a copy of it in each slot (``modules_to_save``)."""
    return isinstance(module, _loaded("peft.utils.other", "AuxiliaryTrainingWrapper"))


def is_peft_model(module: nn.Module) -> bool:
    """Whether a module is PEFT's own model around the user's."""
    return isinstance(module, _loaded("peft.peft_model", "PeftModel"))


def is_tuner(module: nn.Module) -> bool:
    """Whether a module is the level between a `PeftModel` and the user's model."""
    return isinstance(module, _loaded("peft.tuners.tuners_utils", "BaseTuner"))


def is_pretrained_model(module: nn.Module) -> bool:
    """Whether a module is a Hugging Face model."""
    return isinstance(module, _loaded("transformers.modeling_utils", "PreTrainedModel"))


class Place(NamedTuple):
    """Where a module stands."""

    path: Path
    """Attribute names from the root, PEFT's levels included."""
    name: Path
    """The same without PEFT's levels, counted from the innermost ancestor that was given a name."""
    module: nn.Module


def walk(module: nn.Module, names: Mapping[int, Path] | None = None, start: Path = ()) -> Iterator[Place]:
    """Visit a module and all below it once, in the order of registration, leaving out what PEFT added.

    A layer that PEFT replaced is visited twice under one name: the replacement, then the layer in it.

    Args:
        module: The root.
        names: ``id(module)`` -> the name it gets; what is below it is named from there.
        start: The name of the root.
    """
    yield from _walk(module, (), start, names or {}, set())


def _walk(module: nn.Module, path: Path, name: Path, names: Mapping[int, Path], seen: set[int]) -> Iterator[Place]:
    if id(module) in seen:
        return
    seen.add(id(module))
    name = names.get(id(module), name)
    yield Place(path, name, module)
    held, transparent = _peft_children(module)
    for child_name, child in module._modules.items():
        if child is not None and child_name not in held:
            below = name if child_name in transparent else (*name, child_name)
            yield from _walk(child, (*path, child_name), below, names, seen)


def _peft_children(module: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the children that hold adapters, and of those that are the user's own one level further in."""
    if is_tuner_layer(module):
        return (*module.adapter_layer_names, *module.other_param_names), ("base_layer",)  # type: ignore[misc]
    if is_wrapper(module):
        return ("modules_to_save",), ("original_module", "token_adapter")
    if is_peft_model(module):
        return (), ("base_model",)
    if is_tuner(module):
        return (), ("model",)
    return (), ()


def peft_hosts(module: nn.Module) -> list[Any]:
    """The outermost modules that were given PEFT adapters: `PeftModel`s, or the user's own where it was done in place.

    PEFT leaves the adapters' configurations there, in the attribute ``peft_config``.
    """
    if is_peft_model(module) or isinstance(module.__dict__.get("peft_config"), dict):
        return [module]
    return [host for child in module.children() for host in peft_hosts(child)]


def backbone_of(module: nn.Module) -> Any:
    """The module that names outside blocks are counted from.

    The Hugging Face model (or else the model PEFT was applied to) in `module`, the outermost if they are nested;
    `module` itself if there is none, or more than one.
    """
    found = _outermost(module, is_pretrained_model)
    if not found:
        found = [model.get_base_model() for model in _outermost(module, is_peft_model)]
    return found[0] if len(found) == 1 else module


def _outermost(module: nn.Module, test: Callable[[nn.Module], bool]) -> list[Any]:
    if test(module):
        return [module]
    return [found for child in module.children() for found in _outermost(child, test)]
