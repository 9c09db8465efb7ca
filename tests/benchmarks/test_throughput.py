"""What the benchmark of throughput counts and compares."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contender import REGIMES, Contender
from benchmarks.machine import step_flops
from benchmarks.throughput import distance, verdicts
from benchmarks.workload import PlainLoop, Regime

pytestmark = pytest.mark.usefixtures("one_thread")


def test_arithmetic_by_formula_is_what_is_done():
    regime = Regime("small", clients=1, steps=1, batch_size=2, rounds=1, width=24, patch=16)  # 5 tokens
    loop = PlainLoop(regime)
    batch = loop.batches(0, next(iter(loop.shares)))[0]
    with FlopCounterMode(display=False) as counter:
        loop.loss(batch).backward()
    # PyTorch's counter does not know attention on the CPU: q k^T and its product with v, thrice, in 12 blocks.
    attention = 2 * 3 * 12 * (2 * 2 * 5 * 5 * 24)
    assert step_flops(regime) == counter.get_total_flops() + attention


def test_distance_is_relative_to_how_far_the_reference_has_moved():
    initial, reference = (
        {"a": torch.zeros(2), "b": torch.zeros(1)},
        {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])},
    )
    assert distance(reference, reference, initial) == 0.0
    assert distance(initial, reference, initial) == 1.0
    assert distance({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([4.0])}, reference, initial) == pytest.approx(0.2)
    assert distance({"a": reference["a"]}, reference, initial) == float("inf")


@pytest.mark.parametrize(
    ("own", "own_bf16", "same", "expected"),
    [(1.0, 0.5, True, [True, True, True, True]), (1.01, 0.51, False, [False, False, True, False])],
)
def test_verdicts_go_by_the_best_of_each(own, own_bf16, same, expected):
    def row(framework, bf16, ratio, aggregates=True):
        return {"framework": framework, "bf16": bf16, "ratio": ratio, "aggregates": aggregates}

    rows = [
        row("loop", False, 1.0), row("pfl", False, 1.2), row("pfl", True, 0.63), row("lit_fed", False, 1.5),
        row("lit_fed", False, own), row("lit_fed", True, own_bf16, same),
    ]  # fmt: skip
    assert list(verdicts(REGIMES[0], rows).values()) == expected
    assert list(verdicts(REGIMES[2], rows).values()) == expected[:3]  # bfloat16 need not be twice as fast there


def test_names_say_what_differs():
    contenders = (Contender("pfl"), Contender("pfl", True, 2), Contender("lit_fed", True, 1, together=4))
    assert [one.name for one in contenders] == ["pfl", "pfl bf16, 2 processes", "lit_fed bf16, 4 at once"]
