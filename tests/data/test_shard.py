import pytest
import torch
from torch.utils.data import DataLoader

from lit_fed.data.rows import Rows
from lit_fed.data.shard import Shard, ShardCollate, ShardedBatchSampler, ShardRows
from lit_fed.data.table import TensorTable, collate_table


def random() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def batches(num_examples: int, batch_size: int, **options: object) -> list[list[int]]:
    return [batch.tolist() for batch in ShardedBatchSampler(num_examples, batch_size, random(), **options)]


@pytest.mark.parametrize("num_examples", [1, 5, 8, 13])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_shares_joined_are_the_batch_of_one_process(num_examples: int, world: int) -> None:
    whole = batches(num_examples, 4)
    samplers = [ShardedBatchSampler(num_examples, 4, random(), rank=rank, world=world) for rank in range(world)]
    for shares, batch in zip(zip(*samplers, strict=True), whole, strict=True):
        joined = [position for share in shares for position in share.positions.tolist()[: share.num_local]]
        assert joined == batch
        assert sum(share.num_local for share in shares) == len(batch)
        assert {share.num_global for share in shares} == {len(batch)}
        assert max(s.num_local for s in shares) - min(s.num_local for s in shares) <= 1
        # An empty share still holds one example of the batch.
        assert all(len(share) == max(1, share.num_local) for share in shares)
        assert all(set(share.positions.tolist()) <= set(batch) for share in shares)


@pytest.mark.parametrize(
    ("num_examples", "drop_last", "expected"), [(8, True, 2), (9, True, 2), (9, False, 3), (3, True, 1)]
)
def test_a_last_small_batch_is_dropped_unless_it_is_the_only_one(
    num_examples: int, drop_last: bool, expected: int
) -> None:
    sampler = ShardedBatchSampler(num_examples, 4, random(), drop_last=drop_last)
    assert len(sampler) == len(list(sampler)) == expected


def test_every_pass_has_each_example_once_in_a_new_order() -> None:
    sampler = ShardedBatchSampler(20, 6, random())
    passes = [[position for batch in sampler for position in batch.tolist()] for _ in range(2)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(20))
    assert passes[0] != passes[1]


def test_without_a_generator_it_is_in_order() -> None:
    assert [batch.tolist() for batch in ShardedBatchSampler(5, 2)] == [[0, 1], [2, 3], [4]]


def test_a_rank_outside_is_refused() -> None:
    with pytest.raises(ValueError, match="`rank` to be from 0 to 1, but got 2"):
        ShardedBatchSampler(5, 2, rank=2, world=2)


def test_a_loader_gives_shards() -> None:
    table = TensorTable({"x": torch.arange(10) * 10})
    rows = ShardRows(Rows(table, torch.tensor([1, 3, 5])))
    loader = DataLoader(
        rows, batch_sampler=ShardedBatchSampler(3, 2, rank=1, world=2), collate_fn=ShardCollate(collate_table)
    )
    first, last = loader
    assert isinstance(first, Shard)
    assert (first.batch["x"].tolist(), first.num_local, first.num_global) == ([30], 1, 2)
    assert (last.batch["x"].tolist(), last.num_local, last.num_global) == ([50], 1, 1)


def test_an_empty_share_counts_nothing() -> None:
    table = TensorTable({"x": torch.arange(10)})
    loader = DataLoader(
        ShardRows(Rows(table, torch.tensor([4]))),
        batch_sampler=ShardedBatchSampler(1, 8, rank=0, world=2),
        collate_fn=ShardCollate(collate_table),
    )
    (shard,) = loader
    assert (shard.batch["x"].tolist(), shard.num_local, shard.num_global) == ([4], 0, 1)
