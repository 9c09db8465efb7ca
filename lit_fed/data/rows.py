"""Some rows of a data set, still fetched a batch at a time."""

from collections.abc import Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from lit_fed.data.table import TensorTable

__all__ = ["Rows", "length_of", "rows_of"]


class Rows(Dataset[Any]):
    """Rows of a map-style data set, chosen by index. It holds the indices and nothing else.

    Unlike :class:`torch.utils.data.Subset`, it takes positions as a tensor too, and hands them on as one where the data
    set beneath is a :class:`TensorTable`: a batch is then one indexing operation a column.

    Args:
        dataset: Any map-style data set.
        indices: Which of its rows, in which order; int64 ``(N,)``.
    """

    def __init__(self, dataset: Dataset[Any], indices: Tensor) -> None:
        self.dataset = dataset
        self.indices = indices
        self._fetch = getattr(dataset, "__getitems__", None)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Any:
        return self.dataset[int(self.indices[position])]

    def __getitems__(self, positions: Sequence[int] | Tensor) -> Any:
        rows = self.indices[torch.as_tensor(positions, dtype=torch.int64)]
        if isinstance(self.dataset, TensorTable):
            return self.dataset.__getitems__(rows)
        return self._fetch(rows.tolist()) if self._fetch else [self.dataset[row] for row in rows.tolist()]


def rows_of(dataset: Any) -> tuple[Dataset[Any], np.ndarray | None]:
    """Looks beneath subsets: the data set that holds the examples, and which rows of it (`None`: all, in order)."""
    if isinstance(dataset, Subset | Rows):
        inner, rows = rows_of(dataset.dataset)
        own = np.asarray(dataset.indices, dtype=np.int64)
        return inner, own if rows is None else rows[own]
    return dataset, None


def length_of(dataset: Any) -> int | None:
    """Number of examples, or `None` for a data set that can only be iterated."""
    return len(dataset) if isinstance(dataset, Sized) and hasattr(dataset, "__getitem__") else None
