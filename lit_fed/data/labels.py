"""Labels and domains as codes with names."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_fed.core.errors import ConfigError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Coding", "check_dropped", "code_columns", "read_domain_map"]


@dataclass(frozen=True)
class Coding:
    """One column of several data sets, as codes that mean the same in each."""

    names: tuple[str, ...] | None
    """``names[code]``; `None` if the values are numbers with a fraction, kept as they are."""
    values: Mapping[str, np.ndarray]
    """Split to codes, int64, or to numbers, float32; ``(N,)`` each."""

    def select(self, rows: Mapping[str, np.ndarray]) -> "Coding":
        """The codes of some rows of each split."""
        return Coding(self.names, {split: self.values[split][own] for split, own in rows.items()})


def code_columns(
    parts: Mapping[str, "Dataset"], column: str, drop: Sequence[str] = ()
) -> tuple[Coding, dict[str, np.ndarray]]:
    """Codes for the values of a column.

    Names of classes keep their order; texts and whole numbers are sorted. Codes are for the names that are left after
    the drop.

    Args:
        parts: Split to rows.
        column: Which column.
        drop: Names whose rows are left out; see `check_dropped` for names that do not occur.

    Returns:
        The codes of the rows that are left, and which rows these are, by split.

    Raises:
        ConfigError: If a value is missing, is a list, or is no class that is known.
    """
    feature = parts["train"].features[column]
    raw = {split: list(rows[column]) for split, rows in parts.items()}
    for split, values in raw.items():
        if wrong := sum(value is None or not isinstance(value, str | int | float) for value in values):
            raise ConfigError(
                f"Expected column {column!r} to hold a text or a number in each row, but {wrong} rows of {split} do"
                " not."
            )
    known = getattr(feature, "names", None)
    everything = [value for values in raw.values() for value in values]
    if known is None and any(isinstance(value, float) for value in everything):
        if drop:
            raise ConfigError(
                f"Expected `drop_labels` to be empty where labels are numbers with a fraction, but got {drop}."
            )
        numbers = {split: np.asarray(values, dtype=np.float32) for split, values in raw.items()}
        return Coding(None, numbers), {split: np.arange(len(values)) for split, values in raw.items()}
    if known is None:
        known = [str(value) for value in sorted(set(everything))]
        of_value: dict[Any, str] = {value: str(value) for value in set(everything)}
    else:
        of_value = dict(enumerate(known))
    if unlabelled := sorted(set(everything) - set(of_value)):
        raise ConfigError(
            f"Expected column {column!r} to hold classes 0 to {len(known) - 1}, but got {unlabelled[:5]}."
        )
    names = tuple(name for name in known if name not in drop)
    code_of = {value: names.index(name) if name in names else -1 for value, name in of_value.items()}
    codes = {split: np.array([code_of[value] for value in values], dtype=np.int64) for split, values in raw.items()}
    left = {split: np.flatnonzero(own >= 0) for split, own in codes.items()}
    return Coding(names, {split: codes[split][rows] for split, rows in left.items()}), left


def check_dropped(loaded: Mapping[str, "Dataset"], column: str, drop: Sequence[str]) -> None:
    """Refuses to drop labels that no row of a data set has, in any split (also one that is not used).

    Raises:
        ConfigError: If there are such names; with the names there are.
    """
    known: set[str] = set()
    for rows in loaded.values() if drop else ():
        names = getattr(rows.features[column], "names", None)
        known.update(names or map(str, rows.unique(column)))
    if unknown := sorted(set(drop) - known):
        raise ConfigError(
            f"Expected `drop_labels` to be among the labels, but there is no {unknown}. There are {sorted(known)[:20]}."
        )


def read_domain_map(given: str | Mapping[str, str | Sequence[str]], labels: Sequence[str]) -> dict[str, str]:
    """Label to domain, from that, from domain to its labels, or from a JSON file with either.

    Raises:
        ConfigError: If there is no such file, or a label has no domain or several.
    """
    if isinstance(given, str):
        if not Path(given).expanduser().is_file():
            raise ConfigError(f"Expected `domain_map` to be a mapping or a JSON file that exists, but got {given!r}.")
        return read_domain_map(json.loads(Path(given).expanduser().read_text(encoding="utf-8")), labels)
    pairs = [(value, key) for key, values in given.items() if not isinstance(values, str) for value in values]
    pairs += [(key, value) for key, value in given.items() if isinstance(value, str)]
    domain_of = dict(pairs)
    if len(domain_of) < len(pairs):
        twice = sorted({label for label, domain in pairs if domain_of[label] != domain})
        raise ConfigError(f"Expected `domain_map` to give each label one domain, but got several for {twice[:10]}.")
    if missing := [label for label in labels if label not in domain_of]:
        raise ConfigError(
            f"Expected `domain_map` to give every label a domain, but it has none for {missing[:10]} ({len(missing)}"
            " in all). Add them, or leave them out with `drop_labels`."
        )
    return domain_of
