"""A data set held in memory as columns: equally long tensors, and names for their integer codes."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["TensorTable", "collate_table"]


class TensorTable(Dataset[dict[str, Tensor]]):
    """Equally long tensors under names; an example is a dict with one row of each.

    A :class:`~torch.utils.data.DataLoader` fetches a whole batch at once, one index a column, when its ``collate_fn``
    is :func:`collate_table`. For data that fit in memory, that is much faster than collating single examples.

    Args:
        tensors: Column name to tensor, ``(N, ...)`` each, with the same ``N``.
        names: Column name to what its integer codes stand for: ``names["domain"][code]``.

    Raises:
        ValueError: If there is no column, if lengths differ, or if ``names`` has a column that ``tensors`` has not.

    Example::

        table = TensorTable({"pixel_values": torch.zeros(4, 1, 8, 8), "labels": torch.tensor([0, 1, 1, 0])})
        DataLoader(table, batch_size=2, collate_fn=collate_table)
    """

    def __init__(self, tensors: Mapping[str, Tensor], names: Mapping[str, Sequence[str]] | None = None) -> None:
        if not tensors:
            raise ValueError("Expected `tensors` to be at least one column, but got none.")
        lengths = {name: len(tensor) if tensor.ndim else None for name, tensor in tensors.items()}
        if None in lengths.values() or len(set(lengths.values())) > 1:
            raise ValueError(f"Expected `tensors` to be of equal length, but got {lengths}.")
        if unknown := sorted(set(names or {}) - set(tensors)):
            raise ValueError(f"Expected `names` to be for columns among {sorted(tensors)}, but got {unknown}.")
        self._tensors = dict(tensors)
        self.names: dict[str, list[str]] = {column: list(values) for column, values in (names or {}).items()}

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, in the order they were given."""
        return tuple(self._tensors)

    def column(self, name: str) -> Tensor:
        """The whole column ``name``, ``(N, ...)``; not a copy.

        Raises:
            ValueError: If there is no such column.
        """
        if name not in self._tensors:
            raise ValueError(f"Expected `name` to be one of {list(self.columns)}, but got {name!r}.")
        return self._tensors[name]

    def __len__(self) -> int:
        return len(next(iter(self._tensors.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: tensor[index] for name, tensor in self._tensors.items()}

    def __getitems__(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        # What torch's fetcher asks for when it is there. The dict is a batch already, rows first.
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return {name: tensor.index_select(0, rows) for name, tensor in self._tensors.items()}


def collate_table(batch: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Returns an already batched dict as it is, and stacks a list of examples."""
    if isinstance(batch, Mapping):
        return dict(batch)
    return {name: torch.stack([example[name] for example in batch]) for name in batch[0]}
