"""FedKD by hand: two classes, probabilities (1/2, 1/2) and (1/4, 3/4)."""

from dataclasses import replace
from math import log

import pytest
import torch
from torch import Tensor

from lit_fed.algorithms import FedKD
from lit_fed.algorithms.fedkd import mutual_distillation
from lit_fed.core.types import Client
from tests.algorithms.toy import INFO, ToyFederation, ToyLearner, adapter, setting_of

A, B = Client("a", 1), Client("b", 3)
SETTING = setting_of([A, B])


class Two:
    """What a step offers: logits and features by slot."""

    def __init__(self, rows: int) -> None:
        def rows_of(values: list[float]) -> Tensor:
            return torch.tensor([values] * rows, requires_grad=True)

        self._logits = {"global": rows_of([0.0, 0.0]), "local": rows_of([0.0, log(3)])}
        self._features = {"global": rows_of([0.0, 0.0]), "local": rows_of([1.0, 3.0])}
        self.targets = lambda: torch.ones(rows, dtype=torch.long)

    def logits(self, slot: str) -> Tensor:
        return self._logits[slot]

    def features(self, slot: str) -> Tensor:
        return self._features[slot]


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_losses_by_hand(rows: int, hidden: bool) -> None:
    """Cross-entropies log 2 (mentee) and log 4/3 (mentor). The divergences sum to 1/4 log 3:

    KL(mentor || mentee) = 1/4 log 1/2 + 3/4 log 3/2, KL(mentee || mentor) = 1/2 log 2 + 1/2 log 2/3. The features are
    (1, 3) apart: a mean square of 5, for each. A row's gradients, with w one over the sum of cross-entropies: to the
    mentee's logits (1/2, -1/2) and w (1/2 - 1/4, 1/2 - 3/4); to the mentor's (1/4, -1/4) and w (1/4 - 1/2, 3/4 - 1/2);
    to the mentee's features w (-1, -3), which the mentor's have with the other sign.
    """
    step = Two(rows)
    loss = mutual_distillation(hidden)(step)
    weight = 1 / (log(2) + log(4 / 3))
    assert loss.item() == pytest.approx(1 / weight + weight * (log(3) / 4 + 10 * hidden), rel=1e-6)
    loss.backward()
    mentee, mentor = (step.logits(slot).grad[0] * rows for slot in ("global", "local"))
    assert mentee.tolist() == pytest.approx([0.5 + weight / 4, -0.5 - weight / 4])
    assert mentor.tolist() == pytest.approx([0.25 - weight / 4, -0.25 + weight / 4])
    for slot, sign in (("global", -1), ("local", 1)):
        gradient = step.features(slot).grad
        assert (gradient is not None) == hidden
        if hidden:
            assert (gradient[0] * rows).tolist() == pytest.approx([sign * weight, sign * 3 * weight])


def test_two_that_are_sure_and_right_give_no_nan() -> None:
    step = Two(1)
    for slot in ("global", "local"):
        step._logits[slot] = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    loss = mutual_distillation(False)(step)
    loss.backward()
    assert loss.item() == 0
    assert step.logits("local").grad.tolist() == [[0, 0]]


def test_the_share_rises_and_stays() -> None:
    algorithm = FedKD(0.95, 0.98, ramp_rounds=10)
    assert [algorithm.energy(r) for r in (0, 5, 10, 50)] == pytest.approx([0.95, 0.965, 0.98, 0.98])
    assert FedKD(0.5, 0.6, ramp_rounds=0).energy(0) == pytest.approx(0.6)


def random_adapter(seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randn(t.shape, generator=rng) for name, t in adapter(0, 0, 0).items()}


def test_both_are_trained_and_the_mentor_stays() -> None:
    """With all of the energy, one client's mentee is the global one; its mentor goes on from where it was."""
    algorithm, start = FedKD(1.0, 1.0, local_steps=2), random_adapter(0)
    federation = ToyFederation(algorithm, {A: random_adapter(1)}, start).run(2)
    learner = ToyLearner(A, 0, random_adapter(1), start, algorithm.slots)
    learner.activate("global", beside={"local": None})
    learner.fit(steps=4, objective=mutual_distillation(True))
    for name, tensor in learner.state().items():
        torch.testing.assert_close(federation.server.adapter[name], tensor, rtol=0, atol=1e-5)
        torch.testing.assert_close(federation.served("a")[name], learner.state("local")[name], rtol=0, atol=1e-5)
        assert not torch.equal(tensor, start[name])


def test_updates_are_averaged_by_examples() -> None:
    """Client b weighs three times as much; the server adds the mean of the differences."""
    algorithm, start = FedKD(1.0, 1.0, local_steps=1), random_adapter(0)
    federation = ToyFederation(algorithm, {A: random_adapter(1), B: random_adapter(2)}, start).run(1)
    one, other = (update.adapter["head.weight"] for update in federation.updates)
    expected = start["head.weight"] + 0.25 * one + 0.75 * other
    torch.testing.assert_close(federation.server.adapter["head.weight"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"energy_start": 0.0}, "but got 0.0 and 0.98"),
        ({"energy_start": 0.99}, "`algorithm.energy_start` <= `algorithm.energy_end` <= 1, but got 0.99 and 0.98"),
        ({"ramp_rounds": -1}, "`algorithm.ramp_rounds` to be >= 0, but got -1"),
    ],
)
def test_fedkd_refuses(options: dict[str, float], says: str) -> None:
    [problem] = FedKD(**options).problems(SETTING)
    assert says in problem
    assert "no task head" in FedKD().problems(replace(SETTING, model=replace(INFO, has_head=False)))[0]
