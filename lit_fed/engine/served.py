"""What a client predicts with, as a folder: its adapters, and the rule that makes one prediction of them.

=========================  =============================================================================
an adapter                 in PEFT's layout, or canonical names in ``adapter.safetensors``; several slots
                           are folders of their own, ``global/`` and ``local/``
``serving.safetensors``    the rule and the blocks that run; if it is not the module's own forward
``folded.safetensors``     what is folded into the frozen weights; if there is anything
=========================  =============================================================================

A rule is stored as its class and its fields: it is a dataclass of JSON values and tensors.
"""

from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric import Fabric
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lit_fed.adapters.folder import CONFIG_FILE, OTHER_FILE, load_adapter, save_adapter
from lit_fed.adapters.state import AdapterView
from lit_fed.adapters.structure import peft_hosts
from lit_fed.algorithms.base import GLOBAL, Predict, Serving
from lit_fed.core.errors import ConfigError, StateMismatchError
from lit_fed.core.names import is_added
from lit_fed.core.seeding import isolated_rng
from lit_fed.engine.build import attach_as_in, build, give_slot
from lit_fed.engine.storage import load_tree, save_tree

PLAIN_FILE, RULE_FILE, FOLDED_FILE = "adapter.safetensors", "serving.safetensors", "folded.safetensors"


def save_serving(view: AdapterView, serving: Serving, directory: Path) -> None:
    """Write a serving's folder. With frozen weights of its own it is no PEFT adapter."""
    directory.mkdir(parents=True, exist_ok=True)
    one_host = len(peft_hosts(view.module)) == 1
    if serving.folded:
        save_tree(directory / FOLDED_FILE, serving.folded)
    for slot, adapter in serving.adapters.items():
        target = directory if len(serving.adapters) == 1 else directory / slot
        if one_host and not serving.folded:
            save_adapter(view, target, adapter, slot)
        else:
            target.mkdir(parents=True, exist_ok=True)
            save_tree(target / PLAIN_FILE, dict(adapter))
    (directory / RULE_FILE).unlink(missing_ok=True)
    everything = tuple(range(len(view.blocks))) if view.blocks is not None else ()
    blocks = None if serving.blocks is None or tuple(serving.blocks) == everything else list(serving.blocks)
    if serving.predict is not None or blocks is not None:
        save_tree(directory / RULE_FILE, {"blocks": blocks, "rule": _described(serving.predict)})


def is_serving(directory: Path) -> bool:
    """Whether a folder is a serving's."""
    return any((directory / name).exists() for name in (CONFIG_FILE, PLAIN_FILE, GLOBAL))


def slots_of(directory: Path) -> tuple[str, ...]:
    """The slots that have a folder of their own, ``"global"`` first; none if there is one adapter."""
    found = {path.parent.name for name in (CONFIG_FILE, PLAIN_FILE) for path in directory.glob(f"*/{name}")}
    return tuple(sorted(found, key=lambda slot: (slot != GLOBAL, slot)))


def read_added(directory: Path) -> dict[str, Tensor]:
    """What algorithms have added to the module, by canonical name: heads of exits, a gate, parts."""
    folder = directory / GLOBAL if slots_of(directory) else directory
    files = [path for name in (OTHER_FILE, PLAIN_FILE) if (path := folder / name).is_file()]
    try:
        return {name: tensor for path in files for name, tensor in load_file(path).items() if is_added(name)}
    except SafetensorError as error:
        raise StateMismatchError(f"Expected {files} to be whole safetensors files, but got: {error}.") from error


def load_serving(module: pl.LightningModule, fabric: Fabric, seed: int, directory: Path) -> Serving:
    """Build the module, give it slots and parts, and read into them what a folder holds.

    Args:
        module: The module, as its class builds it.
        fabric: Where it is built.
        seed: The run's, from which a model without weights of its own is drawn.
        directory: The folder.

    Raises:
        ConfigError: If the rule is none that can be read back.
        StateMismatchError: If a file is damaged, or not this module's.
    """
    blocks, rule = rule_in(directory)
    folders = {slot: directory / slot for slot in slots_of(directory)} or {GLOBAL: directory}
    if len(folders) > 1 and rule is None:
        raise ConfigError(
            f"Expected {directory / RULE_FILE} to say how the slots {sorted(folders)} make one prediction, but there is"
            " no such file. Give the whole folder."
        )
    build(module, fabric, seed)
    with isolated_rng(seed, "slots"):
        for slot in folders:
            if slot != GLOBAL:
                give_slot(module, slot)
    attach_as_in(module, read_added(directory), seed)
    view = AdapterView(module)
    view.train_only(GLOBAL, None)
    for slot, folder in folders.items():
        if (folder / PLAIN_FILE).is_file():
            view.write(load_tree(folder / PLAIN_FILE), slot)
        else:
            load_adapter(view, folder, slot)
    folded = load_tree(directory / FOLDED_FILE) if (directory / FOLDED_FILE).is_file() else {}
    return Serving({slot: view.read(slot) for slot in folders}, blocks, rule, folded)


def _described(rule: Predict | None) -> dict[str, Any] | None:
    """A rule as a tree; without its fields if they cannot be stored."""
    if rule is None:
        return None
    name = f"{type(rule).__module__}:{type(rule).__qualname__}"
    if not is_dataclass(rule) or "<locals>" in name:
        return {"class": name}
    return {"class": name, "fields": {field.name: getattr(rule, field.name) for field in fields(rule) if field.init}}


def rule_in(directory: Path) -> tuple[tuple[int, ...] | None, Predict | None]:
    """The blocks that run (`None`: all), and the rule (`None`: the module's own forward).

    Raises:
        ConfigError: If the rule is none that can be read back.
    """
    if not (directory / RULE_FILE).is_file():
        return None, None
    stored = load_tree(directory / RULE_FILE)
    blocks = None if stored["blocks"] is None else tuple(stored["blocks"])
    if stored["rule"] is None:
        return blocks, None
    module, _, name = str(stored["rule"]["class"]).partition(":")
    if "fields" not in stored["rule"]:
        raise ConfigError(
            "Expected the rule that a client predicts with to be a dataclass of a module, whose fields can be stored,"
            f" but got {module}.{name}. Make it one, or use `lit-fed predict` with the run folder."
        )
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"Expected to find {module}.{name}, by which {directory} predicts, but got: {error}. Put the file of that"
            " algorithm where Python finds it."
        ) from error
    if not (isinstance(kind, type) and is_dataclass(kind)):  # a file of tensors is not to call whatever it names
        raise ConfigError(
            f"Expected {module}.{name}, by which {directory} predicts, to be a dataclass, but it is none."
        )
    rule: Any = kind(**stored["rule"]["fields"])
    return blocks, rule
