"""A table that partitioners divide in microseconds a client.

``datasets.Dataset.select`` costs milliseconds (a fingerprint, an index table, a copy of the info), which for 10,000
clients is a minute. The partitioners of flwr-datasets need little of it, and nobody needs the parts as data sets.
"""

from collections.abc import Iterable
from typing import Any

import datasets
import numpy as np

__all__ = ["LightTable", "Part"]


class Part:
    """Places in a `LightTable`, and nothing else."""

    def __init__(self, places: np.ndarray) -> None:
        self.places = places

    def __len__(self) -> int:
        return len(self.places)


class LightTable(datasets.Dataset):
    """A data set whose parts are `Part`.

    It is only for partitioners that take parts by `select` and `shard` and order by `sort`: other methods of
    ``Dataset`` are built on these and do not work here.

    Args:
        columns: Name to values, ``(N,)`` each.
        places: The places that parts are made of, ``(N,)``; 0..N-1 by default.
    """

    def __init__(self, columns: dict[str, np.ndarray], places: np.ndarray | None = None) -> None:
        plain = datasets.Dataset.from_dict(columns)
        super().__init__(plain.data, info=plain.info, fingerprint="light")
        self._values = columns
        self._places = np.arange(len(plain)) if places is None else places

    def select(self, indices: Iterable[int], *args: Any, **kwargs: Any) -> Part:
        """Some rows."""
        return Part(self._places[np.asarray(indices if hasattr(indices, "__len__") else list(indices), dtype=np.int64)])

    def shard(self, num_shards: int, index: int, contiguous: bool = True, **kwargs: Any) -> Part:
        """One of `num_shards` parts of (nearly) equal size; the first ones have the rows that are over."""
        if not contiguous:
            return self.select(range(index, len(self), num_shards))
        size, over = divmod(len(self), num_shards)
        start = size * index + min(index, over)
        return self.select(range(start, start + size + (index < over)))

    def sort(self, column_names: str, *args: Any, **kwargs: Any) -> "LightTable":
        """The rows in the order of a column; equal ones stay in their order."""
        order = np.argsort(self._values[column_names], kind="stable")
        return LightTable({name: values[order] for name, values in self._values.items()}, self._places[order])
