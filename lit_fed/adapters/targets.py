"""Whether LoRA settings fit a module, and what it has to offer if not."""

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from peft import LoraConfig

_ALL_LINEAR = "all-linear"
_HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}


def head_names(config: "LoraConfig") -> tuple[str, ...]:
    """What PEFT takes for the head of a task type."""
    return _HEADS.get(str(getattr(config.task_type, "value", config.task_type)), ())


def layer_names(module: nn.Module) -> list[str]:
    """Short names of the linear layers, each once, in order: ``q_proj``, or ``net.0`` in a `Sequential`."""
    return list(dict.fromkeys(_short(path) for path, child in module.named_modules() if path and is_linear(child)))


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, GPT-2's own kind included."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def matched(module: nn.Module, config: "LoraConfig") -> list[nn.Module]:
    """The modules that PEFT will give LoRA to."""
    from peft.tuners.tuners_utils import check_target_module_exists

    if _is_all_linear(config):
        return [child for path, child in module.named_modules() if path and is_linear(child)]
    return [child for path, child in module.named_modules() if path and check_target_module_exists(config, path)]


def target_problems(module: nn.Module, config: "LoraConfig") -> list[str]:
    """What is wrong with ``target_modules``: an entry that matches nothing, or not a layer."""
    if config.target_modules is None:  # `target_parameters` are given in their place
        return []
    paths = [path for path, _ in module.named_modules() if path]
    targets = [config.target_modules] if isinstance(config.target_modules, str) else sorted(config.target_modules)
    has = f"Linear layers of {type(module).__name__} are: {', '.join(layer_names(module)) or 'none'}."
    if not isinstance(config.target_modules, str):
        idle = [t for t in targets if not any(path == t or path.endswith(f".{t}") for path in paths)]
        if idle:
            return [f"Expected `lora.target_modules` to name layers of the model, but got {_listed(idle)}. {has}"]
    layers = matched(module, config)
    if not layers:
        return [f"Expected `lora.target_modules` to match a layer of the model, but got {_listed(targets)}. {has}"]
    groups = sorted({type(layer).__name__ for layer in layers if any(True for _ in layer.children())})
    if groups and not any(isinstance(layer, nn.MultiheadAttention) for layer in layers):
        return [
            f"Expected `lora.target_modules` to name single layers, but got {_listed(targets)}, which matches "
            f"{', '.join(groups)}. {has}"
        ]
    return []


def modules_to_save_problems(module: nn.Module, config: "LoraConfig") -> list[str]:
    """What is wrong with ``modules_to_save``: an entry that matches nothing."""
    paths = [path for path, _ in module.named_modules() if path]
    idle = [name for name in config.modules_to_save or [] if not any(path.endswith(name) for path in paths)]
    if not idle:
        return []
    children = ", ".join(dict.fromkeys(path.split(".")[-1] for path in paths if path.count(".") < 2))
    return [
        f"Expected `lora.modules_to_save` to name modules of the model, but got {_listed(idle)}. "
        f"The outer modules of {type(module).__name__} are: {children}."
    ]


def _is_all_linear(config: "LoraConfig") -> bool:
    return isinstance(config.target_modules, str) and config.target_modules.lower() == _ALL_LINEAR


def _short(path: str) -> str:
    parts = path.split(".")
    start = len(parts) - 1
    while start and parts[start].isdigit():
        start -= 1
    return ".".join(parts[start:])


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names)
