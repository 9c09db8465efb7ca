"""FedAvg, FedProx and the references, on a quadratic whose steps are done by hand.

With learning rate 1/4, n plain steps from s towards the target t end in t + (3/4)^n (s - t).
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lit_fed.algorithms import Centralized, FedAvg, FedProx, Frozen, Local
from lit_fed.algorithms.base import Algorithm
from lit_fed.algorithms.fedprox import proximal
from lit_fed.core.types import Client, Task
from tests.algorithms.toy import BATCHES, INFO, ToyFederation, ToyLearner, ToyStep, adapter, setting_of, values

pytestmark = pytest.mark.usefixtures("global_rng_untouched")
START = adapter(0, 0, 0)
A, B = Client("a", 1), Client("b", 3)
TARGETS = {A: adapter(16, 32, 64), B: adapter(-16, 0, 64)}


def after(steps: int, target: float, start: float = 0.0) -> float:
    return target + 0.75**steps * (start - target)


def random_adapter(seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randn(2, generator=rng) for name in START}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("weights", "of_b"), [("examples", 0.75), ("uniform", 0.5)])
def test_fedavg_by_hand(weights: str, of_b: float) -> None:
    federation = ToyFederation(FedAvg(weights, local_steps=1), TARGETS, START).run(1)
    expected = [(1 - of_b) * after(1, a) + of_b * after(1, b) for a, b in ((16, -16), (32, 0), (64, 64))]
    assert values(federation.served()) == expected


def test_fedavg_starts_the_next_round_from_the_mean() -> None:
    federation = ToyFederation(FedAvg(local_steps=1), TARGETS, START).run(2)
    first = 0.25 * after(1, 16) + 0.75 * after(1, -16)
    assert values(federation.served())[0] == 0.25 * after(1, 16, first) + 0.75 * after(1, -16, first)


@pytest.mark.parametrize(
    "algorithm", [FedAvg(local_steps=3), FedAvg("uniform", local_steps=3), Centralized(local_steps=3)]
)
def test_one_client_is_plain_local_training(algorithm: Algorithm) -> None:
    start, target = random_adapter(0), random_adapter(1)
    federation = ToyFederation(algorithm, {A: target}, start).run(2)
    alone = ToyLearner(A, 0, target, start)
    alone.fit(steps=6)
    assert equal(federation.served(), alone.state())


@pytest.mark.parametrize("budget", [{"local_steps": 3}, {"local_epochs": 2}, {}])
def test_budget(budget: dict[str, int]) -> None:
    federation = ToyFederation(FedAvg(**budget), {A: adapter(16, 16, 16)}, START).run(1)
    steps = budget.get("local_steps", BATCHES * budget.get("local_epochs", 1))
    assert values(federation.served())[0] == after(steps, 16)
    assert federation.updates[0].metrics["steps"] == steps


@pytest.mark.parametrize("budget", [{"local_steps": 1, "local_epochs": 1}, {"local_steps": 0}, {"local_epochs": -1}])
def test_impossible_budgets_are_told_by_their_keys(budget: dict[str, int]) -> None:
    [problem] = FedAvg(**budget).problems(setting_of([A, B]))
    assert all(f"`algorithm.{key}`" in problem for key in budget)


def test_fedprox_without_the_term_is_fedavg_bit_for_bit() -> None:
    clients = {A: random_adapter(1), B: random_adapter(2)}
    runs = [
        ToyFederation(algorithm, clients, random_adapter(0)).run(3).served()
        for algorithm in (FedProx(mu=0.0, local_steps=4), FedAvg(local_steps=4))
    ]
    assert equal(*runs)


def test_fedprox_by_hand() -> None:
    # h'(w) = (w - t) + mu (w - s).  From 0 towards 16, lr 1/4, mu 1: 4, then 4 - (-12 + 4) / 4 = 6.
    federation = ToyFederation(FedProx(mu=1.0, local_steps=2), {A: adapter(16, 16, 16)}, START).run(1)
    assert values(federation.served()) == [6, 6, 6]
    # The next round is held near where *it* starts: 6 + 10/4 = 8.5, then 8.5 - (-7.5 + 2.5) / 4 = 9.75.
    assert values(federation.run(1).served()) == [9.75, 9.75, 9.75]


def test_proximal_gradient() -> None:
    anchor, live = random_adapter(0), {name: t.requires_grad_() for name, t in random_adapter(1).items()}
    trained = {name: live[name] for name in list(live)[:2]}  # only what is trained is held
    loss = proximal(anchor, 0.3)(ToyStep(trained, target=trained))  # the module's own loss is zero
    gradients = torch.autograd.grad(loss, list(trained.values()))
    for (name, tensor), gradient in zip(trained.items(), gradients, strict=True):
        assert torch.allclose(gradient, 0.3 * (tensor - anchor[name]), rtol=0, atol=1e-6)


def test_fedprox_refuses_to_push_apart() -> None:
    assert FedProx(mu=-0.1).problems(setting_of([A])) == ["Expected `algorithm.mu` to be >= 0, but got -0.1."]
    assert FedProx(mu=0.0).problems(setting_of([A])) == []


def test_local_sends_nothing_and_goes_on_with_its_own() -> None:
    federation = ToyFederation(Local(local_steps=1), TARGETS, START).run(3)
    assert [dict(update.adapter) for update in federation.updates] == [{}, {}]
    assert values(federation.served("a")) == [after(3, 16), after(3, 32), after(3, 64)]
    assert values(federation.served("b")) == [after(3, -16), 0, after(3, 64)]
    assert equal(federation.served(), START)  # a new client has the initial adapter


def test_frozen_moves_and_sends_the_head_alone() -> None:
    federation = ToyFederation(Frozen(local_steps=1), TARGETS, adapter(1, 2, 0)).run(2)
    assert all(list(update.adapter) == ["head.weight"] for update in federation.updates)
    assert all(
        list(task.adapter) == ["head.weight"] for task in federation.algorithm.plan(federation.server, [A]).values()
    )
    assert values(federation.served()) == [1, 2, after(2, 64)]


def test_frozen_does_not_even_train_the_rest() -> None:
    learner = ToyLearner(A, 0, TARGETS[A], START)
    Frozen(local_steps=1).local(learner, Task({"head.weight": START["head.weight"]}), {})
    assert values(learner.state()) == [0, 0, after(1, 64)]


def test_frozen_needs_a_head() -> None:
    without = replace(setting_of([A]), model=replace(INFO, has_head=False))
    assert "has none" in Frozen().problems(without)[0]
    assert Frozen().problems(setting_of([A])) == []


@pytest.mark.parametrize(("stands_for", "steps"), [(1, 2), (6, 12)])
def test_centralized_makes_the_steps_of_those_it_stands_for(stands_for: int, steps: int) -> None:
    pooled = Client("all", 10, stands_for=stands_for)
    learner = ToyLearner(pooled, 0, adapter(16, 16, 16), START)
    update, _ = Centralized(local_steps=2).local(learner, Task(START), {})
    assert update.metrics["steps"] == steps
    epochs, _ = Centralized(local_epochs=2).local(ToyLearner(pooled, 0, START, START), Task(START), {})
    assert epochs.metrics["steps"] == 2 * BATCHES  # passes over the pooled data are passes of all
