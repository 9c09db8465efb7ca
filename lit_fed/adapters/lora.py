"""LoRA for a model or a user's own module, through PEFT, with one named adapter for each slot."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import nn

from lit_fed.adapters.folder import load_adapter, save_adapter
from lit_fed.adapters.layout import GLOBAL, declared_head
from lit_fed.adapters.state import AdapterView
from lit_fed.adapters.structure import backbone_of, is_tuner_layer
from lit_fed.adapters.targets import head_names, layer_names, matched, modules_to_save_problems, target_problems
from lit_fed.core.errors import ConfigError
from lit_fed.core.seeding import isolated_rng

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

__all__ = ["add_lora", "add_lora_", "add_slot", "load_adapter", "save_adapter"]

_INITS = (True, False, "gaussian", "orthogonal")


def add_lora(model: nn.Module, config: "LoraConfig", *, seed: int | None = None) -> "PeftModel":
    """Wrap a model with LoRA, in slot ``"global"``; freezes all else but what ``modules_to_save`` names.

    PEFT adds the classifier itself for the task types ``SEQ_CLS`` and ``TOKEN_CLS``; for other models name the head in
    ``modules_to_save``. Adapters are float32, also on a model of lower precision.

    Args:
        model: The model; its layers are replaced in place.
        config: PEFT's settings. They are copied.
        seed: Where the initial values come from. `None`: PyTorch's global generator; else that one is not touched.

    Raises:
        ConfigError: If the settings do not fit the model; nothing has been changed then.
    """
    from peft import get_peft_model

    config = _prepared(model, config)
    with _rng(seed), _as_config_error(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # PEFT's use of it
        return get_peft_model(model, config, adapter_name=GLOBAL)


def add_lora_(module: nn.Module, config: "LoraConfig", *, seed: int | None = None) -> None:
    """Put LoRA into a module in place, in slot ``"global"``: for one's own `LightningModule`.

    Its layers are replaced where they are; class, methods and attributes stay. Everything is frozen but LoRA and

    - the modules that ``modules_to_save`` names,
    - the head that the module declares with ``head_module`` (attribute or method),
    - what PEFT takes for the head of the task type (``classifier`` or ``score`` for ``SEQ_CLS`` and ``TOKEN_CLS``).

    Args:
        module: The module.
        config: PEFT's settings. They are copied.
        seed: Where the initial values come from. `None`: PyTorch's global generator; else that one is not touched.

    Raises:
        ConfigError: If the settings do not fit the module; nothing has been changed then.
    """
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import cast_adapter_dtype

    config = copy.deepcopy(config)
    config.modules_to_save = [*(config.modules_to_save or []), *_own_heads(module, config)] or None
    config = _prepared(module, config)
    with _rng(seed), _as_config_error():
        inject_adapter_in_model(config, module, adapter_name=GLOBAL)
    cast_adapter_dtype(module, GLOBAL)


def add_slot(module: nn.Module, slot: str) -> None:
    """Add a slot to a module with LoRA: same settings, values of ``"global"``, frozen. See `AdapterView.add_slot`."""
    AdapterView(module).add_slot(slot)


def _prepared(module: nn.Module, config: "LoraConfig") -> "LoraConfig":
    """A copy of the settings, checked against the module and completed."""
    from peft.tuners.lora import LoraModel

    if any(is_tuner_layer(m) for m in module.modules()):
        raise ConfigError(f"Expected {type(module).__name__} to have no adapter yet, but it has. Use it as it is.")
    config = copy.deepcopy(config)
    if config.target_modules is None and config.target_parameters is None:
        model_type = str(getattr(getattr(backbone_of(module), "config", None), "model_type", ""))
        targets = LoraModel.target_module_mapping.get(model_type)
        if targets is None:
            raise ConfigError(
                f"Expected `lora.target_modules` to be given for {type(module).__name__}, but got None. "
                f"Its linear layers are: {', '.join(layer_names(module))}."
            )
        config.target_modules = targets if isinstance(targets, str) else list(targets)
    _spare_heads(module, config)
    problems = [*_setting_problems(config), *target_problems(module, config), *modules_to_save_problems(module, config)]
    if problems:
        raise ConfigError(problems)
    kinds = {type(layer).__name__ for layer in matched(module, config)}
    if "Conv1D" in kinds:  # GPT-2's linear layer keeps its weight transposed; PEFT would set this with a warning
        config.fan_in_fan_out = True
    return config


def _setting_problems(config: "LoraConfig") -> list[str]:
    problems = []
    if config.bias != "none":
        problems.append(
            f"Expected `lora.bias` to be 'none', but got {config.bias!r}. "
            "Biases of the frozen model are shared by all slots; leave them frozen."
        )
    if config.init_lora_weights not in _INITS:
        problems.append(
            f"Expected `lora.init_lora_weights` to be one of {list(_INITS)}, but got {config.init_lora_weights!r}. "
            "Others change the frozen weights or need data."
        )
    return problems


def _own_heads(module: nn.Module, config: "LoraConfig") -> list[str]:
    """What is trained beside LoRA without being asked for: the declared head, and that of the task type."""
    paths = [path for path, _ in module.named_modules()]
    wanted = list(config.modules_to_save or [])
    heads = [name for name in head_names(config) if any(path.split(".")[-1] == name for path in paths)]
    declared = declared_head(module)
    if declared is not None:
        path = next((path for path, child in module.named_modules() if child is declared), None)
        if not path:
            raise ConfigError(
                f"Expected `head_module` of {type(module).__name__} to be one of its submodules, but got "
                f"{type(declared).__name__} that is none. Assign it to an attribute of the module."
            )
        clash = [other for other in paths if other.endswith(path) and other != path]
        if clash:
            raise ConfigError(
                f"Expected the name of `head_module`, `{path}`, to end no other module's name, but got `{clash[0]}`. "
                "PEFT looks for names by their ends: give the head's attribute another one."
            )
        heads.append(path)
    return [name for name in dict.fromkeys(heads) if name not in wanted]


def _spare_heads(module: nn.Module, config: "LoraConfig") -> None:
    """Keep LoRA out of heads that PEFT will train a copy of.

    It looks for heads by the ends of names (``classifier`` in ``pre_classifier``), but spares only whole names.
    """
    if isinstance(config.exclude_modules, str):
        return
    ends = (*(config.modules_to_save or ()), *head_names(config))
    heads = {path for path, _ in module.named_modules() if path and path.endswith(ends)} if ends else set()
    backbone = backbone_of(module)
    output = backbone.get_output_embeddings() if hasattr(backbone, "get_output_embeddings") else None
    if isinstance(config.target_modules, str) and config.target_modules.lower() == "all-linear" and output is not None:
        heads |= {path for path, child in module.named_modules() if child is output}
    spared = {path for path in heads for m in module.get_submodule(path).modules() if isinstance(m, nn.Linear)}
    if spared:
        config.exclude_modules = sorted({*(config.exclude_modules or ()), *spared})


def _rng(seed: int | None) -> AbstractContextManager[Any]:
    return nullcontext() if seed is None else isolated_rng(seed, "lora")


@contextmanager
def _as_config_error() -> Iterator[None]:
    """Turn what PEFT refuses by itself into a configuration error."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ConfigError(f"Expected `lora` to be settings that PEFT can apply, but got: {error}") from error
