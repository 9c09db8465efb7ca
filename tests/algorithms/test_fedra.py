"""FedRA and its block-wise baselines by hand: three blocks, one number each."""

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lit_fed.algorithms import AllLarge, AllSmall, ExclusiveFL, FedRA, InclusiveFL
from lit_fed.algorithms.weak_clients import WeakClients, capacities_of
from lit_fed.core.types import Client, ModelInfo, Server, Setting, Update

A, B, C = Client("a", 30, "ink"), Client("b", 10, "lead"), Client("c", 20, "oil")
COHORT = [A, B, C]
WEAK = [FedRA, AllSmall, ExclusiveFL, InclusiveFL]


def setting(num_blocks: int = 3, cohort_size: int = 3, memory: tuple[int, int] | None = None, seed: int = 0) -> Setting:
    model = ModelInfo(num_blocks, True, 100, 10, training_bytes=memory)
    return Setting(model, (A, B, C), cohort_size, seed)


def adapter(*blocks: float, head: float = 0.0) -> dict[str, Tensor]:
    named = {f"blocks.{i}.q.lora_{f}": torch.tensor([float(value)]) for i, value in enumerate(blocks) for f in "AB"}
    return {**named, "head.weight": torch.tensor([float(head)])}


def sent(client: Client, held: dict[int, float], head: float = 0.0) -> Update:
    blocks = {f"blocks.{i}.q.lora_{f}": torch.tensor([float(value)]) for i, value in held.items() for f in "AB"}
    return Update(client.id, {**blocks, "head.weight": torch.tensor([float(head)])}, client.num_examples)


def of(server: Server) -> list[float]:
    for i in range(3):
        assert torch.equal(server.adapter[f"blocks.{i}.q.lora_A"], server.adapter[f"blocks.{i}.q.lora_B"])
    return [server.adapter[f"blocks.{i}.q.lora_A"].item() for i in range(3)]


def start(algorithm: WeakClients, **settings) -> Server:
    return replace(algorithm.init(adapter(7, 8, 9, head=5), setting(**settings)), seed=0)


# -- FedRA ---------------------------------------------------------------------------------------------------------


def test_a_block_is_the_mean_over_its_holders():
    """The numeric vector of the specification."""
    algorithm = FedRA(capacities=[3, 1, 2])
    updates = [sent(A, {0: 1, 1: 2, 2: 3}, 1), sent(B, {1: 10}, 2), sent(C, {0: 4, 1: 6}, 6)]
    merged = algorithm.merge(start(algorithm), updates)
    assert of(merged) == [2.5, 6.0, 3.0]
    assert merged.adapter["head.weight"].item() == 3.0
    absent = algorithm.merge(start(algorithm), updates[1:])
    assert of(absent) == [4.0, 8.0, 9.0]  # nobody sent block 2: it keeps its 9
    assert absent.adapter["head.weight"].item() == 4.0


def test_by_examples():
    algorithm = FedRA(capacities=[3, 1, 2], weights="examples")
    merged = algorithm.merge(start(algorithm), [sent(A, {0: 1, 1: 2, 2: 3}), sent(B, {1: 10}), sent(C, {0: 4, 1: 6})])
    assert of(merged) == pytest.approx([(30 * 1 + 20 * 4) / 50, (30 * 2 + 10 * 10 + 20 * 6) / 60, 3.0])


@pytest.mark.parametrize(("coverage", "expected"), [("keep", 9.0), ("none", 3.0)])
def test_a_block_that_nobody_drew(coverage, expected):
    algorithm = FedRA(capacities=1, coverage=coverage)
    first = algorithm.init(adapter(1, 2, 3), setting())
    server = replace(first, adapter=adapter(7, 8, 9))
    merged = algorithm.merge(server, [sent(A, {0: 4}), sent(B, {1: 5})])
    assert of(merged) == [4.0, 5.0, expected]


def test_tasks_hold_the_drawn_blocks_and_what_is_in_none():
    algorithm = FedRA(capacities=[3, 1, 2])
    for round in range(10):
        tasks = algorithm.plan(replace(start(algorithm), round=round), COHORT)
        assert [len(tasks[client.id].blocks) for client in COHORT] == [3, 1, 2]
        for task in tasks.values():
            blocks = {f"blocks.{i}.q.lora_{f}" for i in task.blocks for f in "AB"}
            assert task.adapter.keys() == blocks | {"head.weight"}


def test_the_matrix_is_new_every_round_and_a_function_of_seed_and_round():
    algorithm = FedRA(capacities=1)

    def rows(round: int, seed: int = 0):
        server = replace(algorithm.init(adapter(0, 0, 0), setting(seed=seed)), round=round, seed=seed)
        return tuple(algorithm.plan(server, COHORT)[client.id].blocks for client in COHORT)

    assert len({rows(round) for round in range(12)}) > 4
    assert rows(5) == rows(5)
    assert [rows(round) for round in range(5)] != [rows(round, seed=1) for round in range(5)]


def test_pinned_blocks_are_held_by_everyone_and_the_others_drawn_for_the_rest():
    algorithm = FedRA(capacities=[3, 2, 2], pinned=[1])
    assert algorithm.problems(setting()) == []
    drawn = []
    for round in range(300):
        tasks = algorithm.plan(replace(start(algorithm), round=round), COHORT)
        assert [len(tasks[client.id].blocks) for client in COHORT] == [3, 2, 2]
        assert all(1 in task.blocks and [*task.blocks] == sorted(task.blocks) for task in tasks.values())
        drawn.append(tasks["b"].blocks)
    assert {*drawn} == {(0, 1), (1, 2)}
    assert abs(drawn.count((0, 1)) - 150) < 4 * (300 / 4) ** 0.5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pinned": [3]}, "different blocks, 0 to 2, but got (3,)"),
        ({"pinned": [1, 1]}, "different blocks, 0 to 2, but got (1, 1)"),
        ({"pinned": [0, 1]}, "it has 2, and the weakest client holds 2"),
        ({"pinned": [0], "coverage": "deal", "capacities": [2, 2, 3], "dynamic": True}, None),
    ],
)
def test_pins_that_cannot_be(settings, said):
    problems = FedRA(**{"capacities": [3, 2, 2], **settings}).problems(setting())
    assert (said is None and problems == []) or said in problems[0]


def test_pins_take_the_places_that_coverage_would_need():
    algorithm = FedRA(capacities=2, pinned=[0], coverage="deal")
    assert algorithm.problems(setting()) == []  # three places for two blocks
    (problem,) = algorithm.problems(setting(num_blocks=5))
    assert "room for all 4 blocks" in problem
    assert "holds 3" in problem


def test_dynamic_capacities_are_redrawn_from_those_there_are():
    algorithm = FedRA(capacities=[1, 3, 3], dynamic=True)
    seen = {"a": [], "b": [], "c": []}
    for round in range(300):
        for client, task in algorithm.plan(replace(start(algorithm), round=round), COHORT).items():
            seen[client].append(len(task.blocks))
    for counts in seen.values():
        assert set(counts) == {1, 3}
        assert abs(counts.count(1) - 100) < 4 * (300 * 2 / 9) ** 0.5


# -- capacities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capacities", "expected"),
    [
        (2, {"a": 2, "b": 2, "c": 2}),
        (0.34, {"a": 1, "b": 1, "c": 1}),
        (0.1, {"a": 1, "b": 1, "c": 1}),  # at least one
        (1.0, {"a": 3, "b": 3, "c": 3}),
        ([1, 0.7, 3], {"a": 1, "b": 2, "c": 3}),
        ({"ink": 1, "b": 2, "oil": 3}, {"a": 1, "b": 2, "c": 3}),
        ("2.5 kB", {"a": 2, "b": 2, "c": 2}),  # (2500 - 400) / 1000
        (["3.4 kB", "1 KiB", "10 kB"], None),
    ],
)
def test_forms_of_capacities(capacities, expected):
    algorithm = FedRA(capacities)
    memory = setting(memory=(400, 1000))
    if expected is None:
        assert "holds a block" in algorithm.problems(memory)[0]  # 1024 - 400 is less than a block
        return
    assert algorithm.problems(memory) == []
    assert capacities_of(algorithm.init(adapter(0, 0, 0), memory)) == expected


def test_capacities_of_domains_are_those_of_their_clients():
    clients = tuple(Client(f"{d}-{i}", 1, d) for d in ("ink", "oil") for i in range(3))
    several = replace(setting(), clients=clients)
    held = capacities_of(FedRA([1, 3]).init(adapter(0, 0, 0), several))
    assert held == {"ink-0": 1, "ink-1": 1, "ink-2": 1, "oil-0": 3, "oil-1": 3, "oil-2": 3}


def test_a_shuffled_list_is_the_same_list_in_an_order_of_the_seed():
    orders = set()
    for seed in range(20):
        held = capacities_of(FedRA([1, 2, 3], shuffle_capacities=True).init(adapter(0, 0, 0), setting(seed=seed)))
        assert sorted(held.values()) == [1, 2, 3]
        orders.add(tuple(held.values()))
    assert len(orders) > 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"capacities": 0}, "from 1 to the model's 3 blocks, but got 0"),
        ({"capacities": [1, 4, 2]}, "but got 4"),
        ({"capacities": 1.5}, r"in \(0, 1\], but got 1.5"),
        ({"capacities": [1, 2]}, "each of the 3 clients or of the 3 domains, but got 2"),
        ({"capacities": {"ink": 1}}, r"says nothing of the clients \['b', 'c'\]"),
        ({"capacities": {"ink": 1, "b": 1, "c": 1, "chalk": 2}}, r"names \['chalk'\]"),
        ({"capacities": "lots"}, "like '512 MB'"),
        ({"capacities": "2 kB"}, "not known here"),
        ({"capacities": 0.0}, r"in \(0, 1\], but got 0.0"),
    ],
)
@pytest.mark.parametrize("kind", WEAK, ids=lambda kind: kind.__name__)
def test_wrong_capacities(kind, settings, message):
    assert re.search(message, "\n".join(kind(**settings).problems(setting())))


@pytest.mark.parametrize("kind", WEAK, ids=lambda kind: kind.__name__)
def test_a_model_without_blocks(kind):
    assert "none that could stand in" in kind().problems(setting(num_blocks=0))[0]


@pytest.mark.parametrize("coverage", ["repair", "deal"])
def test_coverage_must_be_possible_in_the_weakest_cohort(coverage):
    assert FedRA([1, 1, 1], coverage).problems(setting()) == []
    [problem] = FedRA([1, 1, 2], coverage).problems(setting(cohort_size=2))
    assert "weakest cohort of 2 holds 2" in problem
    assert FedRA([1, 1, 2], "keep").problems(setting(cohort_size=2)) == []
    [problem] = FedRA([1, 3, 3], coverage, dynamic=True).problems(setting(cohort_size=2))
    assert "holds 2" in problem  # 1 + 1


def test_dealt_coverage_reaches_the_plan():
    algorithm = FedRA(capacities=1, coverage="deal")
    for round in range(10):
        tasks = algorithm.plan(replace(start(algorithm), round=round), COHORT)
        assert sorted(task.blocks[0] for task in tasks.values()) == [0, 1, 2]


# -- baselines -------------------------------------------------------------------------------------------------------


def test_all_small_is_as_small_as_the_smallest():
    algorithm = AllSmall([3, 2, 3])
    server = start(algorithm)
    assert {task.blocks for task in algorithm.plan(server, COHORT).values()} == {(0, 1)}
    assert algorithm.serve(server, {}).blocks == (0, 1)
    merged = algorithm.merge(server, [sent(A, {0: 1, 1: 2}), sent(B, {0: 3, 1: 6})])
    assert of(merged) == [2.0, 4.0, 9.0]


def test_exclusive_leaves_weak_clients_out():
    algorithm = ExclusiveFL([3, 2, 3])
    server = start(algorithm)
    assert algorithm.plan(server, COHORT).keys() == {"a", "c"}
    assert algorithm.plan(server, [B]) == {}
    assert of(algorithm.merge(server, [])) == [7.0, 8.0, 9.0]
    assert "needs a client that holds all 3" in ExclusiveFL([1, 2, 2]).problems(setting())[0]


def test_all_large_weighs_alike():
    merged = AllLarge().merge(Server(0, adapter(0, 0, 0)), [sent(A, {0: 1, 1: 1, 2: 1}), sent(B, {0: 3, 1: 3, 2: 3})])
    assert of(merged) == [2.0, 2.0, 2.0]


def test_inclusive_gives_prefixes_and_serves_the_deepest():
    algorithm = InclusiveFL([1, 2, 2])
    server = start(algorithm)
    assert {c: task.blocks for c, task in algorithm.plan(server, COHORT).items()} == {
        "a": (0,),
        "b": (0, 1),
        "c": (0, 1),
    }
    assert algorithm.serve(server, {}).blocks == (0, 1)


def test_inclusive_without_distillation_is_the_mean_over_holders():
    algorithm = InclusiveFL([3, 1, 2], distill=False)
    merged = algorithm.merge(start(algorithm), [sent(A, {0: 1, 1: 2, 2: 3}), sent(B, {0: 10}), sent(C, {0: 4, 1: 6})])
    assert of(merged) == [5.0, 4.0, 3.0]


def test_inclusive_teaches_the_last_block_of_shallow_groups_a_round_later():
    """Depths 1 (b) and 3 (a, c); beta 0.25; by hand.

    Round 0, from 0: group 3 changes by the means (2, 3, 5), group 1 by 8. No lesson yet: block 0 moves by
    (2 + 8) / 2 = 5, blocks 1 and 2 by 3 and 5. The lesson for block 0 is (3 + 5) / 2 = 4.
    Round 1, from (5, 3, 5): group 3 changes by (1, 1, 1), group 1 by 2, taught: 0.75 * 2 + 0.25 * 4 = 2.5.
    Block 0 moves by (1 + 2.5) / 2 = 1.75.
    """
    algorithm = InclusiveFL([3, 1, 3], beta=0.25)
    server = replace(algorithm.init(adapter(0, 0, 0), setting()), seed=0)
    server = algorithm.merge(server, [sent(A, {0: 1, 1: 2, 2: 4}), sent(B, {0: 8}), sent(C, {0: 3, 1: 4, 2: 6})])
    assert of(server) == [5.0, 3.0, 5.0]
    again = [sent(A, {0: 6, 1: 4, 2: 6}), sent(B, {0: 7}), sent(C, {0: 6, 1: 4, 2: 6})]
    assert of(algorithm.merge(server, again)) == [6.75, 4.0, 6.0]


def test_inclusive_learns_nothing_from_a_group_that_was_absent():
    algorithm = InclusiveFL([3, 1, 3], beta=0.25)
    server = replace(algorithm.init(adapter(0, 0, 0), setting()), seed=0)
    server = algorithm.merge(server, [sent(B, {0: 8})])
    assert of(server) == [8.0, 0.0, 0.0]
    assert of(algorithm.merge(server, [sent(B, {0: 10})])) == [10.0, 0.0, 0.0]


@pytest.mark.parametrize("beta", [-0.1, 1.1])
def test_beta_is_a_share(beta):
    assert "algorithm.beta" in InclusiveFL(beta=beta).problems(setting())[0]
