"""The allocation matrix: what every draw obeys, how often what happens, and what covers all blocks."""

import math
from itertools import pairwise

import pytest
import torch

from lit_fed.core.allocation import allocate, uncovered

PAPER = {"clipart": 12, "infograph": 10, "painting": 8, "quickdraw": 6, "real": 4, "sketch": 3}
COVERAGES = ["keep", "none", "repair", "deal"]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("coverage", COVERAGES)
@pytest.mark.parametrize("capacities", [PAPER, dict.fromkeys("abcdef", 2), {"a": 1, "b": 11}, {"a": 5}])
def test_rows_hold_as_many_different_blocks_as_the_client_can_in_order(coverage, capacities):
    for seed in range(20):
        rows = allocate(capacities, 12, rng(seed), coverage)
        assert rows.keys() == capacities.keys()
        for client, row in rows.items():
            assert len(row) == capacities[client]
            assert all(a < b for a, b in pairwise(row))
            assert set(row) <= set(range(12))


def test_every_block_is_as_likely_as_any_other():
    draws, random = 10_000, rng()
    counts = {client: [0] * 12 for client in PAPER}
    for _ in range(draws):
        for client, row in allocate(PAPER, 12, random).items():
            for block in row:
                counts[client][block] += 1
    for client, capacity in PAPER.items():
        p = capacity / 12
        bound = 4 * math.sqrt(
            draws * p * (1 - p)
        )  # 72 counts at once: 3 sigma would fail for one in five of sound draws
        assert all(abs(count - draws * p) <= bound for count in counts[client])


def test_rows_are_independent_of_one_another():
    """Two clients with 6 of 12 blocks share 3 on average; with the hypergeometric variance 9/11."""
    draws, random = 5_000, rng()
    shared = [len(set(r["a"]) & set(r["b"])) for r in (allocate({"a": 6, "b": 6}, 12, random) for _ in range(draws))]
    mean = sum(shared) / draws
    assert abs(mean - 3) < 4 * math.sqrt(9 / 11 / draws)
    variance = sum((s - mean) ** 2 for s in shared) / draws
    assert abs(variance - 9 / 11) < 0.08


@pytest.mark.parametrize(
    ("capacities", "expected"),
    [([6] * 6, 0.0156 * 12), ([6, 6, 4, 4, 3, 3], 0.0625 * 12), ([3] * 6, 0.178 * 12)],
)
def test_as_many_blocks_stay_uncovered_as_the_odds_say(capacities, expected):
    """prod_k (1 - c_k / 12) for each of twelve blocks."""
    draws, random = 4_000, rng()
    named = {str(i): capacity for i, capacity in enumerate(capacities)}
    mean = sum(len(uncovered(allocate(named, 12, random), 12)) for _ in range(draws)) / draws
    assert abs(mean - expected) < 0.1


@pytest.mark.parametrize("coverage", ["repair", "deal"])
@pytest.mark.parametrize("capacities", [[2] * 6, [3] * 6, [6, 6, 4, 4, 3, 3], [11, 1]])
def test_all_blocks_are_covered_where_there_is_room(coverage, capacities):
    named = {str(i): capacity for i, capacity in enumerate(capacities)}
    for seed in range(30):
        assert uncovered(allocate(named, 12, rng(seed), coverage), 12) == []


@pytest.mark.parametrize("coverage", ["repair", "deal"])
def test_without_room_for_all_as_many_as_there_are_places(coverage):
    for seed in range(30):
        assert len(uncovered(allocate({"a": 3, "b": 2, "c": 4}, 12, rng(seed), coverage), 12)) == 12 - 9


def test_dealt_blocks_come_to_everyone_alike():
    draws, random = 3_000, rng()
    counts = [0] * 12
    for _ in range(draws):
        for block in allocate({"a": 4, "b": 4, "c": 4}, 12, random, "deal")["a"]:
            counts[block] += 1
    bound = 4 * math.sqrt(draws * (1 / 3) * (2 / 3))
    assert all(abs(count - draws / 3) < bound for count in counts)


@pytest.mark.parametrize("coverage", COVERAGES)
def test_the_order_of_clients_does_not_matter(coverage):
    backwards = dict(reversed(PAPER.items()))
    assert allocate(PAPER, 12, rng(3), coverage) == allocate(backwards, 12, rng(3), coverage)


@pytest.mark.parametrize("capacity", [0, -1, 13])
def test_refuses_what_cannot_be(capacity):
    with pytest.raises(ValueError, match="from 1 to 12"):
        allocate({"a": 3, "b": capacity}, 12, rng())


def test_uncovered():
    assert uncovered({"a": (0, 2), "b": (2,)}, 4) == [1, 3]
