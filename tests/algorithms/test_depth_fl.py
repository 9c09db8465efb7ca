"""DepthFL by hand: three blocks, one number each, a classifier at each depth."""

from dataclasses import replace
from math import exp, log
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lit_fed.algorithms import DepthFL
from lit_fed.algorithms.depth_fl import ramp, self_distillation
from lit_fed.core.types import Client, ModelInfo, Server, Setting, Update

A, B, C = Client("a", 30), Client("b", 10), Client("c", 20)
COHORT = [A, B, C]
SETTING = Setting(ModelInfo(3, True, 100, 10), (A, B, C), 3)
HELD = [3, 1, 2]


def adapter(values: dict[str, float]) -> dict[str, Tensor]:
    """Values by ``"0"`` (a block), ``"exit 1"``, ``"head"`` and ``"other"``."""
    names = {"0": "blocks.0.q.lora_A", "1": "blocks.1.q.lora_A", "2": "blocks.2.q.lora_A"}
    names |= {
        "exit 1": "exits.1.weight",
        "exit 2": "exits.2.weight",
        "head": "head.weight",
        "other": "other.stem.lora_A",
    }
    return {names[key]: torch.tensor([float(value)]) for key, value in values.items()}


START = adapter({"0": 70, "1": 80, "2": 90, "exit 1": 10, "exit 2": 20, "head": 30, "other": 40})


def start(algorithm: DepthFL, **changes: int) -> Server:
    return replace(algorithm.init(START, replace(SETTING, **changes)), seed=0)


def step_of(*logits: Tensor, targets: Tensor) -> SimpleNamespace:
    by_depth = dict(zip((1, 2, 3), logits, strict=False))
    return SimpleNamespace(exit_logits=lambda depths: [by_depth[d] for d in depths], targets=lambda: targets)


EVEN, ODDS = [0.0, 0.0], [0.0, log(3)]  # softmax (1/2, 1/2) and (1/4, 3/4)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_loss_of_two_classifiers(weight, rows):
    """Cross-entropies log 2 and log 4/3; the two divergences sum to 1/4 log 3.

    KL(odds || even) = 1/4 log 1/2 + 3/4 log 3/2, KL(even || odds) = 1/2 log 2 + 1/2 log 2/3.
    """
    even = torch.tensor([EVEN] * rows, requires_grad=True)
    odds = torch.tensor([ODDS] * rows, requires_grad=True)
    step = step_of(even, odds, targets=torch.ones(rows, dtype=torch.long))
    loss = self_distillation([1, 2], weight)(step)
    assert loss.item() == pytest.approx(log(2) + log(4 / 3) + weight / 4 * log(3), rel=1e-6)
    loss.backward()
    # softmax - label, and from the teacher, which gets no gradient: softmax - the teacher's softmax
    up = torch.tensor([0.5 + 0.25 * weight, -0.5 - 0.25 * weight]) / rows
    torch.testing.assert_close(even.grad, up.expand(rows, 2), rtol=1e-6, atol=1e-7)
    down = torch.tensor([0.25 - 0.25 * weight, -0.25 + 0.25 * weight]) / rows
    torch.testing.assert_close(odds.grad, down.expand(rows, 2), rtol=1e-6, atol=1e-7)


def test_the_loss_of_three_classifiers_and_of_one():
    """Of the six divergences two are 0, the others two pairs of 1/4 log 3; divided by n - 1 = 2."""
    logits = [torch.tensor([values]) for values in (EVEN, ODDS, EVEN)]
    step = step_of(*logits, targets=torch.tensor([1]))
    expected = 2 * log(2) + log(4 / 3) + 0.5 * log(3) / 2
    assert self_distillation([1, 2, 3], 1.0)(step).item() == pytest.approx(expected, rel=1e-6)
    assert self_distillation([2], 1.0)(step).item() == pytest.approx(log(4 / 3), rel=1e-6)


def test_low_precision_logits_are_computed_with_in_full():
    logits = torch.tensor([[0.0, 2.0]], dtype=torch.bfloat16)
    loss = self_distillation([1], 1.0)(step_of(logits, targets=torch.tensor([1])))
    assert loss.item() == pytest.approx(log(1 + exp(-2)), rel=1e-6)


@pytest.mark.parametrize(
    ("round", "rounds", "expected"),
    [(0, 10, exp(-5)), (5, 10, exp(-1.25)), (9, 10, exp(-0.05)), (10, 10, 1.0), (400, 10, 1.0), (0, 0, 1.0)],
)
def test_the_ramp(round, rounds, expected):
    assert ramp(round, rounds) == pytest.approx(expected, rel=1e-12)


def test_every_client_gets_its_prefix_and_the_classifiers_up_to_there():
    algorithm = DepthFL(HELD)
    tasks = algorithm.plan(start(algorithm), COHORT)
    assert {client: task.blocks for client, task in tasks.items()} == {"a": (0, 1, 2), "b": (0,), "c": (0, 1)}
    assert {client: task.config["exits"] for client, task in tasks.items()} == {"a": [1, 2, 3], "b": [1], "c": [1, 2]}
    assert tasks["a"].adapter.keys() == START.keys()
    assert tasks["b"].adapter == {n: START[n] for n in ("blocks.0.q.lora_A", "exits.1.weight", "other.stem.lora_A")}
    assert tasks["c"].adapter.keys() == START.keys() - {"blocks.2.q.lora_A", "head.weight"}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("uniform", {"0": 5, "1": 4, "2": 3, "exit 1": 4, "exit 2": 4, "head": 5, "other": 3}),
        # of 30, 10 and 20 examples: block 0 (30 + 100 + 80) / 60, exit 2 (90 + 100) / 50, other (30 + 20 + 120) / 60
        ("examples", {"0": 3.5, "1": 3.6, "2": 3, "exit 1": 3.5, "exit 2": 3.8, "head": 5, "other": 17 / 6}),
    ],
)
def test_blocks_and_classifiers_are_means_over_their_owners(weights, expected):
    algorithm = DepthFL(HELD, weights=weights)
    sent = [
        Update("a", adapter({"0": 1, "1": 2, "2": 3, "exit 1": 1, "exit 2": 3, "head": 5, "other": 1}), 30),
        Update("b", adapter({"0": 10, "exit 1": 4, "other": 2}), 10),
        Update("c", adapter({"0": 4, "1": 6, "exit 1": 7, "exit 2": 5, "other": 6}), 20),
    ]
    merged = algorithm.merge(start(algorithm), sent).adapter
    for name, value in adapter(expected).items():
        torch.testing.assert_close(merged[name], value, rtol=1e-6, atol=0)
    without_a = algorithm.merge(start(algorithm), sent[1:]).adapter
    assert without_a["head.weight"] == 30
    assert without_a["blocks.2.q.lora_A"] == 90
    assert without_a["exits.2.weight"] == 5


@pytest.mark.parametrize(
    ("held", "exits", "blocks"),
    [([3, 1, 2], (1, 2), (0, 1, 2)), ([1, 1, 2], (1,), (0, 1)), (2, (), (0, 1)), ([0.34, 1.0, 1.0], (1,), (0, 1, 2))],
)
def test_depths_are_the_different_capacities_and_the_deepest_has_the_task_head(held, exits, blocks):
    algorithm = DepthFL(held)
    assert algorithm.problems(SETTING) == []
    assert algorithm.exits(SETTING) == exits
    server = start(algorithm)
    assert algorithm.serve(server, {}).blocks == blocks
    tasks = algorithm.plan(server, COHORT).values()
    assert {len(task.blocks) for task in tasks if "head.weight" in task.adapter} == {len(blocks)}


def test_all_classifiers_predict_together_or_the_deepest_alone():
    logits = [torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 0.0]]), torch.tensor([[1.0, 1.0]])]
    server = start(DepthFL(HELD))
    predict = DepthFL(HELD).serve(server, {}).predict
    assert torch.equal(predict(step_of(*logits, targets=torch.tensor([0]))), torch.tensor([[2.0, 1.0]]))
    assert DepthFL(HELD, ensemble=False).serve(server, {}).predict is None
    assert DepthFL(2).serve(start(DepthFL(2)), {}).predict is None


def test_dynamic_capacities_are_among_the_classifiers():
    algorithm = DepthFL([1, 3, 3], dynamic=True)
    seen = set()
    for round in range(30):
        for client, task in algorithm.plan(replace(start(algorithm), round=round), COHORT).items():
            assert task.config["exits"] == ([1] if len(task.blocks) == 1 else [1, 3])
            seen.add((client, len(task.blocks)))
    assert seen == {(client, depth) for client in "abc" for depth in (1, 3)}


def test_impossible_settings_are_told():
    without = replace(SETTING, model=replace(SETTING.model, has_head=False))
    [problem] = DepthFL().problems(without)
    assert "head_module" in problem
    assert DepthFL(ramp_rounds=-1).problems(SETTING) == ["Expected `algorithm.ramp_rounds` to be >= 0, but got -1."]
    assert "but got 4" in DepthFL(4).problems(SETTING)[0]
