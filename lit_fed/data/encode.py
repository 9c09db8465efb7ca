"""Texts and pictures into tensors, once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from lit_fed.core.errors import ConfigError
from lit_fed.data.columns import LABEL_NAMES, Columns
from lit_fed.data.rows import rows_of
from lit_fed.data.table import TensorTable
from lit_fed.data.text import TrimPadding

__all__ = ["Encode", "EncodedRows", "collate_for", "encode_dataset", "is_raw"]

Encode: TypeAlias = Callable[[Mapping[str, list[Any]]], Mapping[str, Tensor]]
"""A module's `encode`: columns (``text``, ``image``, ``prompt``, ``response``) into equally long tensors, a row an
example."""

_PICTURES_AT_ONCE = 256


class EncodedRows(Dataset[Any]):
    """Raw rows that are encoded a batch at a time, because all of them would not fit in memory."""

    def __init__(self, dataset: Any, encode: Encode, codes: Mapping[str, Tensor]) -> None:
        self.dataset, self.encode, self.codes = dataset, encode, codes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: tensor[0] for name, tensor in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        codes = {name: tensor[torch.as_tensor(indices)] for name, tensor in self.codes.items()}
        return {**codes, **_encoded(self.dataset, self.encode, indices)}


def is_raw(dataset: Any) -> bool:
    """Whether a data set (or what it is a subset of) is rows of texts or pictures, as `datasets` reads them."""
    inner = rows_of(dataset)[0]
    return hasattr(inner, "column_names") and hasattr(inner, "features")


def encode_dataset(
    dataset: Any, encode: Encode, columns: Columns, keep: Sequence[str], max_bytes: int
) -> TensorTable | EncodedRows:
    """A data set of raw rows as tensors: what `encode` makes of them, and the scalar columns in `keep`.

    Texts are given to `encode` all at once, so that they are padded to one width; pictures in chunks.

    Args:
        dataset: Raw rows.
        encode: The module's. What it returns wins over a scalar column of the same name.
        columns: Of the data set.
        keep: Scalar columns that go along as codes. Labels go along as ``labels``, whatever they were called.
        max_bytes: Encoded pictures beyond this are not held in memory but encoded whenever a batch is drawn.
    """
    inner, rows = rows_of(dataset)
    raw: Any = inner if rows is None else inner.select(rows)  # type: ignore[attr-defined]
    codes, names = {}, {}
    for name in keep:
        if (column := columns.get(name)) is not None:
            called = LABEL_NAMES[0] if name in LABEL_NAMES else name
            codes[called] = torch.from_numpy(np.ascontiguousarray(column.values))
            codes[called] = codes[called] if column.is_codes else codes[called].float()
            if column.names is not None:
                names[called] = list(column.names)
    if not _has_pictures(raw):
        tensors = _encoded(raw, encode, range(len(raw)))
    else:
        first = _encoded(raw, encode, range(min(_PICTURES_AT_ONCE, len(raw))))
        if sum(t.element_size() * t[0].numel() for t in first.values()) * len(raw) > max_bytes:
            return EncodedRows(raw, encode, codes)
        tensors = {name: tensor.new_empty((len(raw), *tensor.shape[1:])) for name, tensor in first.items()}
        for start in range(0, len(raw), _PICTURES_AT_ONCE):
            chunk = range(start, min(start + _PICTURES_AT_ONCE, len(raw)))
            for name, tensor in (_encoded(raw, encode, chunk) if start else first).items():
                tensors[name][start : chunk.stop] = tensor
    columns_of = {**codes, **tensors}
    # Where the module made labels of its own (tokens), the names of the classes are not theirs.
    kept_names = {name: values for name, values in names.items() if columns_of[name] is codes[name]}
    return TensorTable(columns_of, kept_names)


def collate_for(collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The collate of encoded rows, which come as a batch already: the source's own, unless it is torch's default."""
    return TrimPadding() if collate is default_collate else collate


def _encoded(raw: Any, encode: Encode, indices: Sequence[int]) -> dict[str, Tensor]:
    tensors = dict(encode(raw[indices if isinstance(indices, range) else list(indices)]))
    wrong = {
        name: tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        for name, value in tensors.items()
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != len(indices)
    }
    if wrong or not tensors:
        raise ConfigError(
            f"Expected the module's `encode` to return tensors of {len(indices)} rows, as many as it was given, but got"
            f" {wrong or 'none'}."
        )
    return tensors


def _has_pictures(raw: Any) -> bool:
    return any(type(feature).__name__ in ("Image", "Audio", "Video") for feature in raw.features.values())
