"""What is known about each example of a data set without training on it: its label, its domain, whose it is."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, TensorDataset

from lit_fed.core.errors import ConfigError
from lit_fed.core.seeding import isolated_rng
from lit_fed.data.rows import Rows, rows_of
from lit_fed.data.table import TensorTable

__all__ = ["LABEL_NAMES", "Column", "Columns"]

LABEL_NAMES = ("labels", "label", "targets", "target")
"""Names under which data sets keep labels. They are one name: a data set that has one of them answers to all."""


@dataclass(frozen=True)
class Column:
    """One number an example, and what the numbers stand for."""

    values: np.ndarray
    """``(N,)``, int64 or float64."""
    names: tuple[str, ...] | None = None
    """``names[code]``, where the numbers are codes."""

    @property
    def is_codes(self) -> bool:
        """Whether the numbers are whole: classes, ids, codes."""
        return self.values.dtype.kind == "i"

    @cached_property
    def as_names(self) -> dict[int, str]:
        """Every code that occurs, and codes that are named, to its name.

        Numbers without names are written with leading zeros, so that their order as text is their order as numbers.
        """
        if self.names is not None:
            return dict(enumerate(self.names))
        codes = np.unique(self.values).tolist()
        width = (
            max((len(str(code)) for code in codes), default=1) if self.is_codes and min(codes, default=0) >= 0 else 0
        )
        return {code: str(code).zfill(width) for code in codes}

    def named(self) -> np.ndarray:
        """The names of the examples, ``(N,)`` of `str`."""
        names = self.as_names
        return np.array([names[value] for value in self.values.tolist()], dtype=object)

    def take(self, rows: np.ndarray) -> "Column":
        """The column of some rows."""
        return Column(self.values[rows], self.names)


def as_column(values: Any, names: Any = None) -> Column | None:
    """One value an example as a column; texts become codes in sorted order. `None` for anything that is not scalar."""
    values = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if values.ndim != 1 or values.dtype.kind not in "iubfUO":
        return None
    if values.dtype.kind in "UO":
        if not all(isinstance(value, str) for value in values.tolist()):
            return None  # a missing value among texts belongs to nobody
        unique, codes = np.unique(values.astype(str), return_inverse=True)
        return Column(codes.astype(np.int64), tuple(unique.tolist()))
    values = values.astype(np.float64 if values.dtype.kind == "f" else np.int64)
    return Column(values, tuple(map(str, names)) if names else None)


class Columns:
    """The scalar columns of a map-style data set, read without its pictures and texts where that is possible.

    They come from a :class:`TensorTable`'s columns, a ``datasets.Dataset``'s scalar columns, the ``targets`` that
    torchvision's data sets have, or a :class:`~torch.utils.data.TensorDataset`'s second tensor; subsets and
    concatenations are looked through. For anything else, the examples are gone through once, and only when `get` is
    told to.

    Args:
        dataset: The data set.
        name: What to call it in errors, e.g. ``"training set"``.
    """

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset, self._name = dataset, name
        self._found: dict[str, Column | None] = {}
        self._iterated: dict[str, Column] | None = None

    def get(self, name: str, iterate: bool = False) -> Column | None:
        """A column, or `None` if there is none of this name.

        Args:
            name: Its name; those in `LABEL_NAMES` are one.
            iterate: Whether to go through all examples if it is not found otherwise.
        """
        synonyms = [name, *LABEL_NAMES] if name in LABEL_NAMES else [name]
        for synonym in dict.fromkeys(synonyms):
            if synonym not in self._found:
                self._found[synonym] = _read(self._dataset, synonym)
            if self._found[synonym] is not None:
                return self._found[synonym]
        if iterate and self._iterated is None:
            self._iterated = self._iterate()
        return next((self._iterated[s] for s in synonyms if s in self._iterated), None) if self._iterated else None

    def need(self, name: str, key: str) -> Column:
        """A column that must be there; the examples are gone through if need be.

        Args:
            name: Its name.
            key: The setting that asks for it, for the error.

        Raises:
            ConfigError: If there is none of this name.
        """
        column = self.get(name, iterate=True)
        if column is None:
            raise ConfigError(
                f"Expected `{key}` to be a column of the {self._name} with one number or text an example, but got"
                f" {name!r}. It has {sorted({*self.cheap(), *(self._iterated or {})}) or 'none'}."
            )
        return column

    def of_rows(self, rows: np.ndarray) -> "Columns":
        """The columns of some rows."""
        return Columns(Rows(self._dataset, torch.from_numpy(rows)), self._name)

    def cheap(self) -> list[str]:
        """Names of the columns that are read without going through the examples."""
        return sorted(name for name in _cheap(self._dataset) if self.get(name) is not None)

    def _iterate(self) -> dict[str, Column]:
        seen: dict[str, list[Any]] = {}
        with isolated_rng(0, "columns", self._name):  # a user's augmentations draw from the global generators
            for index in range(len(self._dataset)):
                example = self._dataset[index]
                if isinstance(example, tuple | list) and len(example) > 1:
                    example = {LABEL_NAMES[0]: example[1]}
                for name, value in example.items() if isinstance(example, dict) else ():
                    if isinstance(value, np.generic | Tensor) and value.ndim == 0:
                        value = value.item()
                    if isinstance(value, str | int | float):
                        seen.setdefault(name, []).append(value)
        columns = {name: as_column(values) for name, values in seen.items() if len(values) == len(self._dataset)}
        return {name: column for name, column in columns.items() if column is not None}


def _cheap(dataset: Any) -> set[str]:
    dataset = rows_of(dataset)[0]
    if isinstance(dataset, ConcatDataset):
        return {name for part in dataset.datasets for name in _cheap(part)}
    if isinstance(dataset, TensorTable):
        return set(dataset.columns)
    if hasattr(dataset, "column_names") and hasattr(dataset, "features"):
        return set(dataset.column_names)
    return {LABEL_NAMES[0]}


def _read(dataset: Any, name: str) -> Column | None:
    inner, rows = rows_of(dataset)
    column = _read_whole(inner, name)
    return column if rows is None or column is None else column.take(rows)


def _read_whole(dataset: Any, name: str) -> Column | None:
    if isinstance(dataset, ConcatDataset):
        columns = [column for part in dataset.datasets if (column := _read(part, name)) is not None]
        if len(columns) < len(dataset.datasets) or len({column.names for column in columns}) > 1:
            return None  # codes with other names are other codes
        return Column(np.concatenate([column.values for column in columns]), columns[0].names)
    if isinstance(dataset, TensorTable):
        return as_column(dataset.column(name), dataset.names.get(name)) if name in dataset.columns else None
    if hasattr(dataset, "column_names") and hasattr(dataset, "features"):
        return _read_hub(dataset, name)
    if name != LABEL_NAMES[0]:
        return None
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) > 1:
        return as_column(dataset.tensors[1])
    values = next((getattr(dataset, synonym) for synonym in LABEL_NAMES if hasattr(dataset, synonym)), None)
    if not isinstance(values, list | tuple | np.ndarray | torch.Tensor) or len(values) != len(dataset):
        return None
    return as_column(values, getattr(dataset, "classes", None))


def _read_hub(dataset: Any, name: str) -> Column | None:
    if name not in dataset.column_names or getattr(dataset.features[name], "dtype", "list") in ("list", "dict"):
        return None
    values = dataset.with_format(None)[name]
    if "PIL" in str(dataset.features[name].dtype):
        return None
    return as_column(list(values), getattr(dataset.features[name], "names", None))
