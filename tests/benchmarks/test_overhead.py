"""The loop that the engine is timed against does the same work."""

import pytest

from benchmarks.overhead import compare
from benchmarks.workload import PlainLoop, Regime

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = Regime("small", clients=2, steps=2, batch_size=2, rounds=1, width=12, patch=16)


def test_both_ways_end_in_the_same_adapter_after_every_round_of_both():
    found = compare(SMALL, repeats=2)
    assert found["largest_difference"] <= 1e-6
    assert len(found["loop_rounds_s"]) == len(found["lit_fed_rounds_s"]) == 2


def test_the_loop_moves_what_it_trains():
    loop = PlainLoop(SMALL)
    before = loop.values()
    after = loop.round(0, before)
    assert max(float((a - b).abs().max()) for a, b in zip(after, before, strict=True)) > 1e-4
