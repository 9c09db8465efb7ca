"""Several clients' batches as one: each drawn as in the client's own turn, then joined, a group of rows a client.

Texts of a batch are as long as its longest, so clients' batches differ in length; shorter ones are padded as the module
says (`lit_fed.modules.base.ClientModule.padding`), behind what they have, and the mask says so.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader

from lit_fed.core.seeding import RandomStream
from lit_fed.engine.group_turn import NotTogetherError

MASK = "attention_mask"


@dataclass(frozen=True)
class Joint:
    """A batch of each client, on the device, and all of them as one.

    Groups are of equal size: a smaller batch is filled up with its first row, and what comes of that is not looked at.
    """

    batches: list[Mapping[str, Tensor]]
    sizes: list[int]
    """Rows of each batch."""
    whole: dict[str, Tensor]
    """Name -> (K R, ...), R rows for each of K clients."""

    @property
    def rows(self) -> int:
        """Rows of a group."""
        return max(self.sizes)

    @property
    def num_rows(self) -> int:
        """Rows of all groups."""
        return self.rows * len(self.sizes)

    def parts(self, whole: Tensor) -> list[Tensor]:
        """What of a tensor with a row for each of `whole` belongs to each client, without the rows that fill up."""
        return [part[:size] for part, size in zip(whole.chunk(len(self.sizes)), self.sizes, strict=True)]


class Draws:
    """A client's batches, epoch after epoch, on the device.

    Args:
        loader: Its batches of an epoch, in a new order whenever it is iterated.
        random: The global generators as its turn would have them.
        mover: Moves a batch to the device.
    """

    def __init__(self, loader: DataLoader[Any], random: RandomStream, mover: Callable[[Any], Any]) -> None:
        self.num_batches = len(loader)
        self._loader, self._random, self._mover = loader, random, mover
        self._epoch: Iterator[Any] = iter(())

    def next(self) -> Any:
        """The next batch."""
        with self._random.resumed():
            try:
                batch = next(self._epoch)
            except StopIteration:
                self._epoch = iter(self._loader)
                batch = next(self._epoch)
            return self._mover(batch)


class JointLoader:
    """Joint batches of some clients. An epoch of them is that of the clients where theirs are of equal length.

    Args:
        draws: Each client's.
        length: Batches of an epoch.
        padding: The module's.
    """

    def __init__(self, draws: Sequence[Draws], length: int, padding: Mapping[str, int]) -> None:
        self._draws, self._length, self._padding = draws, length, padding

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._length

    def __iter__(self) -> Iterator[Joint]:
        """An epoch."""
        for _ in range(self._length):
            yield join([draws.next() for draws in self._draws], self._padding)


def join(batches: list[Any], padding: Mapping[str, int]) -> Joint:
    """Batches as one.

    Args:
        batches: Each client's.
        padding: Columns (B, T) that may differ in T, and what to fill them up with; there must be a mask among them.

    Raises:
        NotTogetherError: If they are no mappings of tensors, or differ in more than their number of rows and T.
    """
    if not all(isinstance(batch, Mapping) and _is_table(batch) for batch in batches):
        raise NotTogetherError("their batches are no mappings of tensors with a row for each example")
    wide = {name for name, value in batches[0].items() if name in padding and value.ndim == 2}
    widths = {batch[name].shape[1] for batch in batches for name in wide & set(batch)}
    if len(widths) < 2 or MASK not in wide:
        wide = set()  # nothing to pad, or nothing that would say so
    shapes = {
        tuple((name, value.shape[2 if name in wide else 1 :], value.dtype) for name, value in batch.items())
        for batch in batches
    }
    if len(shapes) > 1:
        raise NotTogetherError("their batches have unequal shapes")
    sizes = [len(next(iter(batch.values()))) for batch in batches]
    rows = max(sizes)
    columns = {name: [_filled(batch[name], rows) for batch in batches] for name in batches[0]}
    for name in wide:
        columns[name] = [pad(v, (0, max(widths) - v.shape[1]), value=padding[name]) for v in columns[name]]
    return Joint(batches, sizes, {name: torch.cat(values) for name, values in columns.items()})


def _is_table(batch: Mapping[str, Any]) -> bool:
    values = list(batch.values())
    return all(isinstance(v, Tensor) and v.ndim for v in values) and len({len(v) for v in values}) == 1


def _filled(value: Tensor, rows: int) -> Tensor:
    lacking = rows - len(value)
    return torch.cat([value, value[:1].expand(lacking, *value.shape[1:])]) if lacking else value
