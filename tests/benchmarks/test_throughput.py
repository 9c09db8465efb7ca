"""What the benchmark of throughput counts and compares."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contender import REGIMES, Contender
from benchmarks.machine import step_flops
from benchmarks.throughput import contenders, distance, tables, verdicts
from benchmarks.workload import PlainLoop, Regime, make_data, make_module
from lit_fed.adapters.lean_first_token import lean_first_token
from lit_fed.adapters.state import AdapterView

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


def test_arithmetic_that_lean_kernels_leave_out_is_not_counted():
    regime = Regime(
        "pictures", clients=1, steps=1, batch_size=2, rounds=1, width=24, patch=16, blocks=3, heads=2, image=48,
        channels=3,
    )  # fmt: skip
    module = make_module(regime)
    module.configure_model()
    batch = make_data(regime).source.table[torch.arange(2)]
    undo = lean_first_token(module, AdapterView(module).blocks)
    with FlopCounterMode(display=False) as counter:
        module.loss(module.logits(batch), module.targets(batch)).backward()
    undo()
    attention = 2 * 3 * (2 * (2 * 2 * 10 * 10 * 24) + 2 * 2 * 10 * 24)  # 10 tokens; in the last block one asks
    assert step_flops(regime, "lean") == counter.get_total_flops() + attention
    assert step_flops(regime, "torch") > step_flops(regime, "lean")


def test_distance_is_relative_to_how_far_the_reference_has_moved():
    initial, reference = (
        {"a": torch.zeros(2), "b": torch.zeros(1)},
        {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])},
    )
    assert distance(reference, reference, initial) == 0.0
    assert distance(initial, reference, initial) == 1.0
    assert distance({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([4.0])}, reference, initial) == pytest.approx(0.2)
    assert distance({"a": reference["a"]}, reference, initial) == float("inf")


def row(framework, bf16=False, ratio=1.0, processes=1, threads=1, together=1, seconds=1.0, digest=None, same=True):
    return {
        "framework": framework, "bf16": bf16, "ratio": ratio, "processes": processes, "threads": threads,
        "together": together, "ratios": [seconds], "digest": digest, "same_adapter": same,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("own", "own_bf16", "same", "expected"),
    [(1.0, 0.5, True, [True, True, True, True]), (1.01, 0.51, False, [False, False, True, False])],
)
def test_verdicts_go_by_the_best_of_each(own, own_bf16, same, expected):
    rows = [
        row("loop"), row("pfl", ratio=1.2), row("pfl", True, 0.63), row("lit_fed", ratio=1.5, threads=2),
        row("lit_fed", ratio=own, threads=2), row("lit_fed", True, own_bf16, same=same),
    ]  # fmt: skip
    assert list(verdicts(REGIMES[0], rows).values()) == expected
    assert list(verdicts(REGIMES[2], rows).values()) == expected[:3]  # bfloat16 need not be twice as fast there


@pytest.mark.parametrize(("seconds", "digest", "expected"), [(0.5, "a", [True, True]), (0.6, "b", [False, False])])
def test_two_processes_against_one_with_one_thread(seconds, digest, expected):
    rows = [
        row("loop"), row("lit_fed", threads=2, seconds=0.1, digest="c"), row("lit_fed", digest="a"),
        row("lit_fed", processes=2, seconds=seconds, digest=digest),
        row("lit_fed", processes=2, together=4, seconds=0.1, digest="d"),
    ]  # fmt: skip
    found = verdicts(REGIMES[0], rows)
    assert [holds for name, holds in found.items() if name.startswith("2 processes")] == expected
    assert [holds for name, holds in verdicts(REGIMES[2], rows).items() if "processes" in name] == expected[:1]


def test_without_lit_fed_there_is_nothing_to_say_of_its_speed():
    assert list(verdicts(REGIMES[0], [row("loop"), row("pfl")])) == ["same final adapters"]


def test_names_say_what_differs():
    everybody = (Contender("pfl"), Contender("pfl", True, 2), Contender("lit_fed", True, 1, 2, together=4))
    assert [one.name for one in everybody] == ["pfl, 1 x 1", "pfl bf16, 2 x 1", "lit_fed bf16, 1 x 2, 4 at once"]


def test_the_reference_is_first_and_lit_fed_has_one_with_one_thread():
    everybody = [one for one in contenders(2, 2, [4]) if one.framework in ("loop", "lit_fed")]
    assert everybody[0] == Contender("loop", threads=2)
    assert Contender("lit_fed") in everybody
    assert Contender("lit_fed", True) not in everybody
    assert len(set(everybody)) == len(everybody) == 4 + 4 + 3


def test_the_reference_sits_at_every_table_and_nobody_else_twice():
    everybody = contenders(2, 2, [4])
    found = tables(everybody, 5)
    assert [table[0] for table in found] == [everybody[0]] * len(found)
    assert [everybody[0], *(one for table in found for one in table[1:])] == everybody
    assert all(sum(one.processes for one in table) <= 5 for table in found)
