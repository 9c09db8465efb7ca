"""HetLoRA, FlexLoRA, FLoRA, FedEx-LoRA and FFA-LoRA by hand: one layer of two inputs and two outputs, and a head."""

import math
from dataclasses import replace

import pytest
import torch

from lit_fed.algorithms import FedAvg, FedExLoRA, FFALoRA, FlexLoRA, FLoRA, HetLoRA
from lit_fed.algorithms.folded import deltas_of
from lit_fed.algorithms.het_lora import penalized, tail_norm
from lit_fed.algorithms.low_rank import ranks_of
from lit_fed.core.errors import ConfigError
from lit_fed.core.rank import pairs, truncate
from lit_fed.core.tree import num_bytes
from lit_fed.core.types import Client, ModelInfo, Setting, Task, Update
from tests.algorithms.toy import ToyFederation, ToyLearner, ToyStep
from tests.algorithms.toy import adapter as toy_adapter

pytestmark = pytest.mark.usefixtures("global_rng_untouched")
A, B, C = Client("a", 30, "ink"), Client("b", 10, "lead"), Client("c", 20, "oil")
LAYER = "blocks.0.q"
FAMILY = [HetLoRA, FlexLoRA, FLoRA, FedExLoRA, FFALoRA]
RANKED = [HetLoRA, FlexLoRA, FLoRA]
FLOAT32 = 1e-6  # of numbers of order 1 to 10, rounded once


def names(kind):
    return kind.__name__


def setting(rank=2, clients=(A, B, C), seed=0):
    return Setting(ModelInfo(1, True, 100, 10, rank=rank), tuple(clients), len(clients), seed)


def lora(a, b, head=0.0):
    """A by its rows, B by its columns."""
    columns = torch.tensor(b, dtype=torch.float32).T.contiguous()
    return {
        f"{LAYER}.lora_A": torch.tensor(a, dtype=torch.float32),
        f"{LAYER}.lora_B": columns,
        "head.weight": torch.tensor([float(head)]),
    }


START = lora([[0.5, -0.5], [0.25, 0.75]], [[0, 0], [0, 0]], head=5)


def sent(client, a, b, head=0.0):
    return Update(client.id, lora(a, b, head), client.num_examples)


def server_of(algorithm, start=START, **changes):
    return replace(algorithm.init(start, setting(**changes)), seed=0)


def dense(server):
    """What the next round starts from: the factors' product and what is folded."""
    (a, b), folded = pairs(server.adapter)[LAYER], deltas_of(server)
    return b.double() @ a.double() + (folded[f"{LAYER}.delta"].double() if folded else 0)


def close(tensor, expected):
    torch.testing.assert_close(tensor.double(), torch.tensor(expected).double(), rtol=0, atol=FLOAT32)


# -- HetLoRA -------------------------------------------------------------------------------------------------------

WEAK = sent(A, [[3, 4]], [[1, 0]], head=1)  # rank 1; the norm of its product is 5
STRONG = sent(B, [[1, 0], [0, 1]], [[9, 0], [0, 12]], head=5)  # rank 2; the norm is 15


@pytest.mark.parametrize("strength", ["layer", "model"])  # one layer: the same
def test_hetlora_pads_with_zeros_and_weighs_by_norm(strength):
    algorithm = HetLoRA([1, 2, 2], strength=strength)
    merged = algorithm.merge(server_of(algorithm), [STRONG, WEAK])
    a, b = pairs(merged.adapter)[LAYER]
    close(a, [[0.25 * 3 + 0.75 * 1, 0.25 * 4], [0, 0.75]])
    close(b, [[0.25 * 1 + 0.75 * 9, 0], [0, 0.75 * 12]])
    assert merged.adapter["head.weight"].item() == 0.75 * 1 + 0.25 * 5  # by examples
    # BA is [[10.5, 7], [0, 6.75]], the mean of the products [[7.5, 1], [0, 9]]
    expected = math.sqrt(3**2 + 6**2 + 2.25**2) / math.sqrt(7.5**2 + 1 + 9**2)
    assert merged.metrics == {"aggregation_error": pytest.approx(expected, abs=FLOAT32)}


def test_hetlora_takes_norms_by_layer_or_over_the_model():
    """Client a learned in layer p alone, client b in layer q alone: 3 and 4."""
    other = {f"blocks.1.q.{factor}": START[f"{LAYER}.{factor}"] for factor in ("lora_A", "lora_B")}
    zero = [[0, 0], [0, 0]]

    def update(client, in_p, in_q):
        p = lora([[1, 0], [0, 1]], [[in_p, 0], [0, 0]])
        q = lora([[1, 0], [0, 1]], [[in_q, 0], [0, 0]])
        q = {f"blocks.1.q.{factor}": q[f"{LAYER}.{factor}"] for factor in ("lora_A", "lora_B")}
        return Update(client.id, {**p, **q}, client.num_examples)

    for strength, p, q in (("layer", 3.0, 4.0), ("model", 3 * 3 / 7, 4 * 4 / 7)):
        algorithm = HetLoRA(strength=strength)
        merged = algorithm.merge(server_of(algorithm, {**START, **other}), [update(A, 3, 0), update(B, 0, 4)])
        found = pairs(merged.adapter)
        close(found[LAYER][1], [[p, 0], zero[1]])
        close(found["blocks.1.q"][1], [[q, 0], zero[1]])


def test_hetlora_counts_clients_alike_where_nobody_learned():
    algorithm = HetLoRA()
    updates = [sent(c, [[x, 0], [0, x]], [[0, 0], [0, 0]]) for c, x in ((A, 1), (B, 3))]
    merged = algorithm.merge(server_of(algorithm), updates)
    close(pairs(merged.adapter)[LAYER][0], [[2, 0], [0, 2]])
    assert merged.metrics == {"aggregation_error": 0.0}


def test_hetlora_keeps_a_component_that_nobody_holds():
    algorithm = HetLoRA(1)
    start = lora([[1, 2], [3, 4]], [[5, 6], [7, 8]])
    merged = algorithm.merge(server_of(algorithm, start), [sent(A, [[3, 4]], [[1, 0]]), sent(B, [[3, 4]], [[1, 0]])])
    a, b = pairs(merged.adapter)[LAYER]
    assert a.tolist() == [[3, 4], [3, 4]]
    assert b.tolist() == [[1, 7], [0, 8]]
    # what the next round has beyond the mean [[3, 4], [0, 0]] is that component, [7, 8] times [3, 4]
    assert merged.metrics["aggregation_error"] == pytest.approx(math.hypot(7, 8) * 5 / 5, abs=FLOAT32)


def test_tail_norm_by_hand():
    adapter = lora([[1, 0], [3, 4]], [[9, 9], [0, 2]])
    assert tail_norm(adapter, 1).item() == 5 * 2
    assert tail_norm(adapter, 2).item() == 0


def test_the_penalty_pulls_at_the_tail_alone():
    live = {name: t.requires_grad_() for name, t in lora([[1, 0], [3, 4]], [[9, 9], [0, 2]]).items()}
    loss = penalized(0.5, 1)(ToyStep(live, target={name: t.detach() for name, t in live.items()}))  # no loss of its own
    a, b, _ = torch.autograd.grad(loss, list(live.values()), materialize_grads=True)
    # d |a| |b| / da = a / |a| * |b|
    close(a, [[0, 0], [0.5 * 3 / 5 * 2, 0.5 * 4 / 5 * 2]])
    close(b, [[0, 0], [0, 0.5 * 5]])


def test_the_penalty_is_finite_where_the_tail_is_zero():
    live = {name: t.clone().requires_grad_() for name, t in START.items()}  # B = 0, as every run begins
    gradients = torch.autograd.grad(tail_norm(live, 1), list(live.values())[:2])
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


@pytest.mark.parametrize(("target", "gamma", "kept"), [(0, 0.5, 1), (9, 0.5, 2), (0, 1.0, 2), (0, 0.99, 1)])
def test_hetlora_prunes_a_tail_that_became_weaker(target, gamma, kept):
    """Everything moves from 1 towards the target: with 0 the tail shrinks, with 9 it grows."""
    algorithm = HetLoRA(gamma=gamma, penalty=0.0, local_steps=1)
    run = ToyFederation(algorithm, {A: toy_adapter(target, target, target)}, toy_adapter(1, 1, 1)).run(1)
    assert run.updates[0].adapter[f"{LAYER}.lora_A"].shape == (kept, 2)
    assert ranks_of(run.server) == {"a": kept}
    assert algorithm.plan(run.server, [A])["a"].adapter[f"{LAYER}.lora_B"].shape == (2, kept)
    assert ranks_of(run.run(5).server)["a"] >= 1  # whatever happens, something is left to train


def test_a_penalty_prunes_what_would_not_have_been():
    """From 1 towards 1 nothing moves but by the penalty."""
    runs = {}
    for penalty in (0.0, 0.1):
        algorithm = HetLoRA(gamma=0.5, penalty=penalty, local_steps=1)
        runs[penalty] = ToyFederation(algorithm, {A: toy_adapter(1, 1, 1)}, toy_adapter(1, 1, 1)).run(1)
    assert ranks_of(runs[0.0].server) == {"a": 2}
    assert ranks_of(runs[0.1].server) == {"a": 1}


# -- FlexLoRA ------------------------------------------------------------------------------------------------------


def test_flexlora_by_hand():
    """diag(8, 0) and diag(0, 8), by examples 3 : 1, are diag(6, 2) on average: components in order of strength."""
    algorithm = FlexLoRA([1, 1, 2])
    updates = [sent(A, [[2, 0]], [[4, 0]], head=1), sent(B, [[0, 1]], [[0, 8]], head=5)]
    merged = algorithm.merge(server_of(algorithm), updates)
    close(dense(merged), [[6, 0], [0, 2]])
    assert merged.adapter["head.weight"].item() == 2.0
    assert merged.metrics["aggregation_error"] < 1e-7
    a, b = pairs(merged.adapter)[LAYER]
    close(a.abs(), [[1, 0], [0, 1]])
    close(b.abs(), [[6, 0], [0, 2]])
    weak = algorithm.plan(merged, [A, C])["a"].adapter
    close(pairs(weak)[LAYER][1] @ pairs(weak)[LAYER][0], [[6, 0], [0, 0]])


def test_flexlora_keeps_the_strongest_when_the_rank_is_short():
    algorithm = FlexLoRA(1, weights="uniform")
    start = truncate(START, 1)
    server = server_of(algorithm, start, rank=1)
    merged = algorithm.merge(server, [sent(A, [[2, 0]], [[4, 0]]), sent(B, [[0, 1]], [[0, 6]])])
    close(dense(merged), [[4, 0], [0, 0]])
    assert merged.metrics["aggregation_error"] == pytest.approx(3 / 5, abs=FLOAT32)  # diag(0, 3) of diag(4, 3)


def test_flexlora_leaves_spare_components_something_to_train():
    """One client of rank 1: the second component has no strength, but its A is not zero."""
    algorithm = FlexLoRA(1)
    merged = algorithm.merge(server_of(algorithm), [sent(A, [[3, 4]], [[2, 0]])])
    a, b = pairs(merged.adapter)[LAYER]
    close(dense(merged), [[6, 8], [0, 0]])
    assert a[1].tolist() == [0.25, 0.75]  # its row before the round
    assert b[:, 1].tolist() == [0, 0]


# -- FLoRA and FedEx-LoRA ------------------------------------------------------------------------------------------


def test_flora_folds_the_mean_of_the_products_and_begins_anew():
    algorithm = FLoRA([1, 2, 2])
    first = algorithm.merge(server_of(algorithm), [WEAK, STRONG])  # 30 and 10 examples
    mean = [[0.75 * 3 + 0.25 * 9, 0.75 * 4], [0, 0.25 * 12]]
    close(deltas_of(first)[f"{LAYER}.delta"], mean)
    a, b = pairs(first.adapter)[LAYER]
    assert not b.any()
    assert (a.abs() <= 1 / math.sqrt(2)).all()
    assert len(set(a.flatten().tolist())) == 4
    assert first.adapter["head.weight"].item() == 2.0
    assert first.metrics["aggregation_error"] < 1e-7
    again = algorithm.merge(server_of(algorithm), [WEAK, STRONG])
    assert torch.equal(pairs(again.adapter)[LAYER][0], a)
    second = algorithm.merge(replace(first, round=1), [WEAK, STRONG])
    close(deltas_of(second)[f"{LAYER}.delta"], [[2 * x for x in row] for row in mean])  # on top of the first
    assert not torch.equal(pairs(second.adapter)[LAYER][0], a)
    served = algorithm.serve(second, {})
    assert served.folded is deltas_of(second)


def test_fedex_folds_what_the_averages_lack():
    algorithm = FedExLoRA(weights="uniform")
    start = truncate(START, 1)
    updates = [sent(A, [[2, 0]], [[2, 0]], head=1), sent(B, [[0, 2]], [[0, 2]], head=5)]
    first = algorithm.merge(server_of(algorithm, start, rank=1), updates)
    a, b = pairs(first.adapter)[LAYER]
    assert (a.tolist(), b.tolist()) == ([[1, 1]], [[1], [1]])
    assert deltas_of(first)[f"{LAYER}.delta"].tolist() == [[1, -1], [-1, 1]]  # diag(2, 2) less ones
    assert first.adapter["head.weight"].item() == 3.0
    assert first.metrics == {"aggregation_error": 0.0}
    # the same updates again: the same averages, and once more what they lack
    second = algorithm.merge(first, updates)
    assert deltas_of(second)[f"{LAYER}.delta"].tolist() == [[2, -2], [-2, 2]]


def test_fedex_averages_as_fedavg_does():
    algorithms = FedExLoRA(), FedAvg()
    merged = [one.merge(server_of(one), [STRONG, replace(STRONG, client="c")]).adapter for one in algorithms]
    assert all(torch.equal(merged[0][name], merged[1][name]) for name in START)


@pytest.mark.parametrize("kind", [FLoRA, FedExLoRA], ids=names)
def test_clients_fold_before_they_train(kind):
    algorithm = kind(local_steps=1)
    server = algorithm.merge(server_of(algorithm, toy_adapter(1, 1, 1)), [Update("a", toy_adapter(2, 3, 4), 1)])
    task = algorithm.plan(server, [A])["a"]
    learner = ToyLearner(A, 1, toy_adapter(0, 0, 0), toy_adapter(1, 1, 1))
    update, _ = algorithm.local(learner, task, {})
    assert torch.equal(learner.folded[f"{LAYER}.delta"], deltas_of(server)[f"{LAYER}.delta"])
    assert update.adapter.keys() == toy_adapter(0, 0, 0).keys()  # what is folded does not come back
    assert num_bytes(task.adapter) == num_bytes(server.adapter) + 4 * 4  # 2 x 2 numbers of float32, for every client


def test_fedex_of_one_client_folds_nothing():
    algorithm = FedExLoRA()
    merged = algorithm.merge(server_of(algorithm), [STRONG])
    assert not deltas_of(merged)[f"{LAYER}.delta"].any()


# -- FFA-LoRA ------------------------------------------------------------------------------------------------------


def test_ffa_by_hand():
    algorithm = FFALoRA(local_steps=1)
    targets = {Client("a", 1): toy_adapter(16, 16, 64), Client("b", 3): toy_adapter(-16, -16, 64)}
    run = ToyFederation(algorithm, targets, toy_adapter(1, 0, 0)).run(1)
    for adapter in (*(u.adapter for u in run.updates), *(t.adapter for t in algorithm.plan(run.server, [A]).values())):
        assert sorted(adapter) == [f"{LAYER}.lora_B", "head.weight"]
    a, b = pairs(run.server.adapter)[LAYER]
    assert a.tolist() == [[1, 1], [1, 1]]
    assert b.tolist() == [[-2, -2], [-2, -2]]  # a quarter of the way from 0 to +-16, 1 : 3
    assert run.server.adapter["head.weight"].tolist() == [16, 16]
    assert run.server.metrics["aggregation_error"] < 1e-12


def test_ffa_does_not_even_train_a():
    learner = ToyLearner(A, 0, toy_adapter(16, 16, 16), toy_adapter(1, 1, 1))
    FFALoRA(local_steps=1).local(learner, Task({}), {})
    assert learner.state()[f"{LAYER}.lora_A"].tolist() == [[1, 1], [1, 1]]
    assert learner.state()[f"{LAYER}.lora_B"].tolist() != [[1, 1], [1, 1]]


def test_ffa_refuses_an_a_that_lets_nothing_through():
    with pytest.raises(ConfigError, match=r"which is 0 in \['blocks\.0\.q'\]"):
        FFALoRA().init(toy_adapter(0, 1, 1), setting())


# -- all of them ---------------------------------------------------------------------------------------------------


def random_updates(ranks, seed=0):
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=random).tolist()

    return [
        sent(c, draw(rank, 2), draw(rank, 2), head=i) for i, (c, rank) in enumerate(zip((A, B, C), ranks, strict=True))
    ]


@pytest.mark.parametrize("weights", ["examples", "uniform"])
@pytest.mark.parametrize("kind", FAMILY, ids=names)
def test_the_error_is_that_of_dense_matrices(kind, weights):
    """Against the definition, in float64: what the next round starts from, less the mean of the products."""
    algorithm = kind(weights=weights)
    updates = random_updates((2, 2, 2))
    if kind is FFALoRA:
        updates = [replace(u, adapter={**u.adapter, f"{LAYER}.lora_A": START[f"{LAYER}.lora_A"]}) for u in updates]
    products = [u.adapter[f"{LAYER}.lora_B"].double() @ u.adapter[f"{LAYER}.lora_A"].double() for u in updates]
    shares = {"examples": [30.0, 10.0, 20.0], "uniform": [1.0] * 3}[weights]
    if kind is HetLoRA:  # clients count as much as they learned
        shares = [float(product.norm()) for product in products]
    mean = sum(w * p for w, p in zip(shares, products, strict=True)) / sum(shares)
    merged = algorithm.merge(server_of(algorithm), updates)
    error = float((dense(merged) - mean).norm() / mean.norm())
    assert merged.metrics["aggregation_error"] == pytest.approx(error, rel=1e-6, abs=1e-12)
    assert (error < 1e-7) == (kind is not HetLoRA)  # rank 2 suffices for FlexLoRA: the matrices are 2 x 2


@pytest.mark.parametrize("ranks", [(2, 2, 2), (1, 1, 1)])
@pytest.mark.parametrize("kind", FAMILY, ids=names)
def test_a_convolution_is_treated_as_the_matrix_of_its_kernels(kind, ranks):
    def as_conv(adapter):
        shaped = {f"{LAYER}.lora_A": (-1, 2, 1, 1), f"{LAYER}.lora_B": (2, -1, 1, 1), "head.weight": (1,)}
        return {name: tensor.reshape(shaped[name]) for name, tensor in adapter.items()}

    updates = random_updates(ranks)
    if kind in (FedExLoRA, FFALoRA):
        updates = random_updates((2, 2, 2))
    plain = kind().merge(server_of(kind()), updates)
    conv = kind().merge(
        server_of(kind(), as_conv(START)), [replace(update, adapter=as_conv(update.adapter)) for update in updates]
    )
    assert all(torch.equal(conv.adapter[name], tensor) for name, tensor in as_conv(plain.adapter).items())
    for name, delta in deltas_of(plain).items():
        assert torch.equal(deltas_of(conv)[name], delta.reshape(2, 2, 1, 1))


@pytest.mark.parametrize("kind", FAMILY, ids=names)
def test_a_round_without_updates_changes_nothing(kind):
    server = server_of(kind())
    assert kind().merge(server, []) is server


@pytest.mark.parametrize("kind", FAMILY, ids=names)
def test_without_lora_there_is_nothing_to_do(kind):
    [problem] = kind().problems(setting(rank=0))
    assert "LoRA" in problem
    assert "`model.lora`" in problem


@pytest.mark.parametrize("kind", [HetLoRA, FlexLoRA, FLoRA, FedExLoRA], ids=names)
def test_no_examples_at_all_is_said(kind):
    updates = [replace(update, num_examples=0) for update in random_updates((2, 2, 2))]
    with pytest.raises(ValueError, match="to sum to more than 0"):
        kind().merge(server_of(kind()), updates)


@pytest.mark.parametrize("kind", RANKED, ids=names)
@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        (1, [1, 1, 1]),
        (1.0, [2, 2, 2]),
        (0.5, [1, 1, 1]),
        ([1, 2, 0.5], [1, 2, 1]),
        ({"a": 2, "lead": 1, "oil": 0.6}, [2, 1, 1]),
    ],
)
def test_tasks_hold_as_many_components_as_a_client_can(kind, ranks, expected):
    algorithm = kind(ranks)
    assert algorithm.problems(setting()) == []
    tasks = algorithm.plan(server_of(algorithm), [A, B, C])
    for client, rank in zip((A, B, C), expected, strict=True):
        held = tasks[client.id].adapter
        assert held[f"{LAYER}.lora_A"].shape == (rank, 2)
        assert held[f"{LAYER}.lora_B"].shape == (2, rank)
        assert num_bytes(held) == 4 * (4 * rank + 1)


@pytest.mark.parametrize("kind", RANKED, ids=names)
def test_a_list_of_ranks_can_be_shuffled(kind):
    algorithm = kind([1, 2, 2], shuffle_ranks=True)
    weak = {min(h := ranks_of(server_of(algorithm, seed=seed)), key=h.get) for seed in range(20)}
    assert weak == {"a", "b", "c"}


@pytest.mark.parametrize("kind", RANKED, ids=names)
@pytest.mark.parametrize(
    ("ranks", "says"),
    [
        (3, "Expected `algorithm.ranks` to be from 1 to the LoRA rank of 2, but got 3."),
        (0, "Expected `algorithm.ranks` to be from 1 to the LoRA rank of 2, but got 0."),
        (1.5, "Expected a fraction in `algorithm.ranks` to be in (0, 1], but got 1.5."),
        ("2 GB", "Expected `algorithm.ranks` to be whole numbers or fractions, but got '2 GB'."),
        ({"a": 1}, "`algorithm.ranks` says nothing of the clients ['b', 'c']."),
        (
            [1, 2],
            "Expected `algorithm.ranks` to hold one number for each of the 3 clients or of the 3 domains, but got 2.",
        ),
    ],
)
def test_impossible_ranks_are_told_by_their_key(kind, ranks, says):
    [problem] = kind(ranks).problems(setting())
    assert problem.startswith(says)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gamma": 0.0}, "Expected `algorithm.gamma` to be in (0, 1], but got 0.0."),
        ({"gamma": 1.1}, "Expected `algorithm.gamma` to be in (0, 1], but got 1.1."),
        ({"penalty": -1.0}, "Expected `algorithm.penalty` to be >= 0, but got -1.0."),
    ],
)
def test_impossible_pruning(options, says):
    assert HetLoRA(**options).problems(setting()) == [says]


@pytest.mark.parametrize("kind", FAMILY, ids=names)
def test_layers_whose_update_is_no_product_are_refused(kind):
    odd = {"blocks.0.x.lora_A": torch.ones(2, 1, 3, 3), "blocks.0.x.lora_B": torch.ones(4, 1, 1, 1)}
    with pytest.raises(ConfigError, match=r"\['blocks\.0\.x'\]"):
        kind().init({**START, **odd}, setting())
