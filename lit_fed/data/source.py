"""What a LightningDataModule holds: its data sets, and how it batches them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader

from lit_fed.core.errors import ConfigError
from lit_fed.core.seeding import isolated_rng
from lit_fed.data.columns import Columns
from lit_fed.data.rows import length_of

__all__ = ["Part", "check_labels", "prepare", "read_part", "read_predict", "read_source"]

_LOADERS = {
    "train": ("train_dataloader", "training set"),
    "val": ("val_dataloader", "validation set"),
    "test": ("test_dataloader", "test set"),
    "predict": ("predict_dataloader", "prediction set"),
}


@dataclass(frozen=True)
class Part:
    """One data set of the source, and how its loader batches it."""

    dataset: Any
    columns: Columns
    collate_fn: Callable[[Any], Any]
    batch_size: int | None
    """`None` where the loader has a batch sampler of its own."""
    drop_last: bool
    pin_memory: bool


def prepare(source: LightningDataModule, seed: int, dry_run: bool = False) -> str | None:
    """Downloads and sets up, as a Trainer would.

    Splits that a source draws from the global generators are the same in every process and every run.

    Args:
        source: What to set up.
        seed: Of the global generators meanwhile.
        dry_run: Whether examples are only counted. A source may offer ``setup_dry_run()`` for this: it does without
            what is not there, and returns what it assumed, as a sentence, or `None`.

    Returns:
        What a dry run assumed.
    """
    rehearse: Callable[[], str | None] | None = getattr(source, "setup_dry_run", None)
    with isolated_rng(seed, "setup"):
        if dry_run and rehearse is not None:
            return rehearse()
        source.prepare_data()
        source.setup("fit")
        if is_overridden("test_dataloader", source, LightningDataModule):
            source.setup("test")
    return None


def read_source(source: LightningDataModule) -> dict[str, Part]:
    """The parts of a source that has been set up: ``train``, and ``val`` and ``test`` where it has them.

    Raises:
        ConfigError: If there is no training set, or one of them cannot be divided.
    """
    # All loaders are asked for after all of the setup: a source that splits anew in each call is then of one piece.
    parts = {name: part for name in ("train", "val", "test") if (part := read_part(source, name)) is not None}
    if "train" not in parts:
        raise ConfigError("Expected `data.source` to have a training set, but its train_dataloader() gives none.")
    return parts


def read_predict(source: LightningDataModule, seed: int) -> Part | None:
    """Sets up and reads the prediction set, or `None` if the source has none."""
    if not is_overridden("predict_dataloader", source, LightningDataModule):
        return None
    with isolated_rng(seed, "setup"):
        source.setup("predict")
    return read_part(source, "predict")


def read_part(source: LightningDataModule, name: str) -> Part | None:
    """The data set behind one loader of the source, or `None` if it has no such loader."""
    hook, words = _LOADERS[name]
    if not is_overridden(hook, source, LightningDataModule):
        return None
    loader = getattr(source, hook)()
    if isinstance(loader, Sequence) and not isinstance(loader, str):
        if len(loader) > 1:
            raise ConfigError(
                f"Expected `{hook}` of `data.source` to return one DataLoader, but got {len(loader)}. Join their data"
                " sets with torch.utils.data.ConcatDataset."
            )
        loader = loader[0] if loader else None
    if loader is None:
        return None
    if not isinstance(loader, DataLoader):
        raise ConfigError(
            f"Expected `{hook}` of `data.source` to return a torch DataLoader, but got a {type(loader).__name__}."
            " Return the loader of one data set."
        )
    if length_of(loader.dataset) is None:
        raise ConfigError(
            f"Expected the {words} of `data.source` to be a map-style data set, but got a"
            f" {type(loader.dataset).__name__}. One that can only be iterated cannot be divided among clients: give"
            " it __len__ and __getitem__."
        )
    return Part(
        dataset=loader.dataset,
        columns=Columns(loader.dataset, words),
        collate_fn=loader.collate_fn,
        batch_size=loader.batch_size,
        drop_last=loader.drop_last,
        pin_memory=loader.pin_memory,
    )


def check_labels(part: Part, name: str, source: LightningDataModule, of: str) -> list[str]:
    """What is wrong with the labels of a part, as far as they can be read without going through its examples.

    Args:
        part: The part.
        name: Its column of labels.
        source: What it is part of; its ``num_labels`` or ``num_classes``, if it has one, says how many classes there
            are.
        of: Which part it is.
    """
    column = part.columns.get(name)
    if column is None or not column.is_codes:
        return []
    counts = (getattr(source, attribute, None) for attribute in ("num_labels", "num_classes"))
    num_classes = next((count for count in counts if isinstance(count, int)), len(column.names or ()) or None)
    if num_classes is None:
        return []
    bad = column.values[(column.values < 0) | (column.values >= num_classes)]
    if not len(bad):
        return []
    return [
        f"Expected the labels of the {_LOADERS[of][1]} to be from 0 to {num_classes - 1}, but got"
        f" {sorted(set(bad.tolist()))[:5]} ({len(bad)} examples). Correct them, or the number of classes of"
        " `data.source`."
    ]
