"""Batches, and each process's share of them when several processes train one client together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset, Sampler

__all__ = ["Shard", "ShardCollate", "ShardRows", "ShardedBatchSampler", "Share"]


@dataclass(frozen=True)
class Shard:
    """One process's share of a batch."""

    batch: Any
    """The examples of the share. Where the share is empty, one example of the batch, which must count nothing."""
    num_local: int
    """Examples of the share: 0 where it is empty."""
    num_global: int
    """Examples of the whole batch."""


@dataclass(frozen=True)
class Share:
    """Which examples are one process's share of a batch."""

    positions: Tensor
    """int64 ``(max(1, num_local),)``."""
    num_local: int
    num_global: int

    def __len__(self) -> int:
        return len(self.positions)


class ShardedBatchSampler(Sampler[Any]):
    """Positions of shuffled batches, the same on every process; of each, the share of one.

    Shares are contiguous and differ by at most one example in size. Joined in the order of the ranks they are the
    batch.

    Args:
        num_examples: How many there are.
        batch_size: Examples of a whole batch, over all processes.
        random: Shuffles anew whenever the sampler is iterated (`None`: in order).
        drop_last: Whether to leave out a last batch that is smaller; never if it is the only one.
        rank: Which process this is.
        world: How many there are. With one process, batches are tensors of positions; with more, they are `Share`.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        random: Generator | None = None,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"Expected `rank` to be from 0 to {world - 1}, but got {rank}.")
        self.num_examples, self.batch_size, self.random, self.drop_last = num_examples, batch_size, random, drop_last
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        whole, over = divmod(self.num_examples, self.batch_size)
        return whole + (over > 0 and not (self.drop_last and whole > 0))

    def __iter__(self) -> Iterator[Any]:
        order = torch.arange(self.num_examples)
        if self.random is not None:
            order = torch.randperm(self.num_examples, generator=self.random)
        for batch in range(len(self)):
            positions = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield positions if self.world == 1 else self._share(positions)

    def _share(self, positions: Tensor) -> Share:
        total = len(positions)
        start, end = self.rank * total // self.world, (self.rank + 1) * total // self.world
        # A process without a share still runs the step, so that all meet at the same exchange of gradients.
        return Share(positions[start:end] if end > start else positions[:1], end - start, total)


class ShardRows(Dataset[Any]):
    """A data set asked for a `Share`: the examples, and the share they are."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> Any:
        return self.dataset[position]

    def __getitems__(self, share: Share) -> tuple[Any, Share]:
        return self.dataset.__getitems__(share.positions), share


@dataclass(frozen=True)
class ShardCollate:
    """Collates what `ShardRows` gives into a `Shard`."""

    collate: Callable[[Any], Any]

    def __call__(self, drawn: tuple[Any, Share]) -> Shard:
        """The share as a batch, with its numbers."""
        examples, share = drawn
        return Shard(self.collate(examples), share.num_local, share.num_global)
