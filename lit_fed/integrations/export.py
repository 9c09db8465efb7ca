"""What a run tuned, out of its folder: adapters in PEFT's layout, or the model with the adapter merged into it."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from lightning.pytorch import LightningModule

from lit_fed.adapters.merge import merge_lora_
from lit_fed.adapters.parts import parts_of
from lit_fed.adapters.state import AdapterView
from lit_fed.core.errors import ConfigError
from lit_fed.engine.run_folder import RunFolder
from lit_fed.engine.served import FOLDED_FILE, load_serving, read_added, rule_in, slots_of
from lit_fed.engine.storage import file_name
from lit_fed.integrations.card import Card
from lit_fed.modules import ClientModule

__all__ = ["export_adapter", "export_merged"]

CARD_FILE = "README.md"
PREPROCESSING = (
    "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model",
    "vocab.txt", "vocab.json", "merges.txt",
)  # fmt: skip


def export_adapter(run: Path, to: Path, client: str | None = None) -> None:
    """Copy what a client predicts with out of a run folder, with a model card and the run's settings.

    One adapter is a PEFT adapter: ``PeftModel.from_pretrained(base, to)`` takes it. What is more than that (two slots
    and a gate between them, in ``global/`` and ``local/``; a head beside the head) is made one prediction of by
    `lit_fed.load_export`, and by ``lit-fed predict --run TO``.

    Args:
        run: The run folder.
        to: A new folder.
        client: Whose adapter; `None` is the global one.

    Raises:
        ConfigError: If there is no such adapter, it is not all that was tuned, how it predicts cannot be stored, or
            `to` exists.
    """
    source = _adapter_of(run, client)
    if (source / FOLDED_FILE).is_file():
        raise ConfigError(
            f"Expected an adapter that is all the run has tuned, but got one of an algorithm that has also changed the "
            f"frozen weights ({source / FOLDED_FILE}). Export the whole model with `--merge`."
        )
    rule_in(source)  # or say now that nobody could read it
    with _new_folder(to) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        for name in ("config.yaml", "summary.json"):
            shutil.copy(run / name, folder)
        (folder / CARD_FILE).write_text(Card(run, folder, to, client).text(), "utf-8")


def export_merged(module: LightningModule, run: Path, to: Path, client: str | None = None) -> None:
    """Save the Hugging Face model with the adapter merged into its weights, and a model card.

    ``from_pretrained(to)`` takes it; where the run knows the names of the classes, so does the model.

    Args:
        module: As the run's configuration builds it; it is merged in place.
        run: The run folder.
        to: A new folder.
        client: Whose adapter; `None` is the global one.

    Raises:
        ConfigError: If there is no such adapter, the model is not one that can be merged and saved, or `to` exists.
        StateMismatchError: If the adapter is not that of the module.
    """
    source = _adapter_of(run, client)
    _check_is_one_model(source)
    seed = RunFolder(run).summary()["seed"]
    serving = load_serving(module, Fabric(accelerator="cpu", devices=1), seed, source)
    AdapterView(module).fold(serving.folded)
    merge_lora_(module)
    held = [child for child in module.children() if any(True for _ in child.parameters())]
    merged: Any = held[0] if len(held) == 1 else module
    if not hasattr(merged, "save_pretrained"):
        raise ConfigError(
            f"Expected a Hugging Face model to merge, but got {type(merged).__name__}, which cannot be saved as one. "
            "Export without `--merge`."
        )
    _name_classes(merged, RunFolder(run).summary().get("label_names"))
    with _new_folder(to) as folder:
        merged.save_pretrained(folder)
        (folder / CARD_FILE).write_text(Card(run, folder, to, client, type(merged).__name__).text(), "utf-8")
        if isinstance(module, ClientModule):
            found = [module.source.find_file(name) for name in PREPROCESSING]
            for path in filter(None, found):
                shutil.copy(path, folder)


def _check_is_one_model(source: Path) -> None:
    """Raise `ConfigError` if no one model of Hugging Face predicts as this serving does."""
    blocks, rule = rule_in(source)
    slots, parts = list(slots_of(source)), sorted(parts_of(read_added(source)))
    if slots:
        what = f"the slots {slots}, which are weighed for each example"
    elif rule is not None:
        what = "an adapter with heads beside the head, whose logits are mixed"
    elif blocks is not None:
        what = f"one of which {len(blocks)} blocks of the model run"
    elif parts:
        what = f"one with a {' and a '.join(parts)} beside the model"
    else:
        return
    raise ConfigError(
        f"Expected one adapter of the whole model to merge, but got {what}: no one set of weights predicts so."
        " Export without `--merge`: `lit-fed predict --run TO --input FILE` and `lit_fed.load_export` take that."
    )


def _name_classes(model: Any, names: list[str] | None) -> None:
    """Classes by name in the model's configuration, if there are as many."""
    config: Any = getattr(model, "config", None)
    if names and getattr(config, "num_labels", None) == len(names):
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}


def _adapter_of(run: Path, client: str | None) -> Path:
    root = run / "adapters"
    if not (root / "global").is_dir():
        raise ConfigError(f"Expected `run` to be the folder of a finished run, but {root / 'global'} does not exist.")
    if client is None:
        return root / "global"
    found = root / "clients" / file_name(client)
    if not found.is_dir():
        raise ConfigError(
            f"Expected `client` to have an adapter of its own, but {client!r} has none in {root / 'clients'}. "
            "Without `--client`, the global one is exported."
        )
    return found


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A folder under a temporary name that gets its own when it is complete.

    Raises:
        ConfigError: If it exists.
    """
    if path.exists():
        raise ConfigError(f"Expected `to` to be a new folder, but {path} exists.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        folder = Path(temporary, "folder")
        folder.mkdir()
        yield folder
        folder.rename(path)
