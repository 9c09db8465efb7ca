"""FedAvgM, FedAdam, FedYogi by hand: one client that makes one step, so that the change is (target - s) / 4."""

import math

import pytest
import torch

from lit_fed.algorithms import FedAdam, FedAvg, FedAvgM, FedYogi
from lit_fed.algorithms.base import Algorithm
from lit_fed.core.types import Client
from tests.algorithms.toy import ToyFederation, adapter, setting_of, values

pytestmark = pytest.mark.usefixtures("global_rng_untouched")
A, B = Client("a", 1), Client("b", 3)


def path(algorithm: Algorithm, rounds: int = 2) -> list[float]:
    federation = ToyFederation(algorithm, {A: adapter(16, 16, 16)}, adapter(0, 0, 0))
    return [values(federation.run(1).served())[0] for _ in range(rounds)]


def test_fedavgm() -> None:
    # Round 1: change 4, v = 4, w = 4.  Round 2: change 3, v = 4/2 + 3 = 5, w = 9.
    assert path(FedAvgM(server_lr=1.0, momentum=0.5, local_steps=1)) == [4, 9]


def test_fedavgm_with_nesterov() -> None:
    # Round 1: v = 4, w = 4 + 4/2 = 6.  Round 2: change 2.5, v = 4/2 + 2.5 = 4.5, w = 6 + 2.5 + 4.5/2 = 10.75.
    assert path(FedAvgM(server_lr=1.0, momentum=0.5, nesterov=True, local_steps=1)) == [6, 10.75]


def test_fedavgm_with_a_server_learning_rate() -> None:
    # Round 1: w = 0.5 * 4 = 2.  Round 2: change 3.5, v = 4/2 + 3.5 = 5.5, w = 2 + 0.5 * 5.5 = 4.75.
    assert path(FedAvgM(server_lr=0.5, momentum=0.5, local_steps=1)) == [2, 4.75]


@pytest.mark.parametrize("rule", [FedAdam, FedYogi])
def test_adaptive(rule: type[FedAdam] | type[FedYogi]) -> None:
    lr, beta1, beta2, tau = 0.5, 0.5, 0.75, 0.25
    x, m, v, expected = 0.0, 0.0, tau**2, []
    for _ in range(2):
        change = (16 - x) / 4
        m = beta1 * m + (1 - beta1) * change
        square = change**2
        v = beta2 * v + (1 - beta2) * square if rule is FedAdam else v + (1 - beta2) * square  # square > v, both rounds
        x += lr * m / (math.sqrt(v) + tau)
        expected.append(x)
    got = path(rule(server_lr=lr, beta1=beta1, beta2=beta2, tau=tau, local_steps=1))
    assert got == pytest.approx(expected, rel=1e-6)  # the adapter is float32


def test_fedavgm_without_momentum_is_fedavg_bit_for_bit() -> None:
    rng = torch.Generator().manual_seed(0)
    clients = {c: {n: torch.randn(2, generator=rng) for n in adapter(0, 0, 0)} for c in (A, B)}
    runs = [
        ToyFederation(algorithm, clients, adapter(0.1, 0.2, 0.3)).run(3).served()
        for algorithm in (
            FedAvgM(1.0, 0.0, local_steps=2),
            FedAvgM(1.0, 0.0, nesterov=True, local_steps=2),
            FedAvg(local_steps=2),
        )
    ]
    assert all(torch.equal(run[name], runs[-1][name]) for run in runs for name in run)


def test_the_server_remembers_and_passes_its_state_on() -> None:
    federation = ToyFederation(FedAdam(local_steps=1), {A: adapter(1, 1, 1)}, adapter(0, 0, 0)).run(1)
    assert {key: sorted(value) for key, value in federation.server.state.items()} == {
        "m": sorted(federation.start), "v": sorted(federation.start)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("algorithm", "keys"),
    [
        (FedAvgM(server_lr=0.0, momentum=1.0), ["server_lr", "momentum"]),
        (FedAdam(server_lr=-1.0, beta1=1.0, beta2=-0.1, tau=0.0), ["server_lr", "beta1", "beta2", "tau"]),
        (FedYogi(server_lr=float("nan")), ["server_lr"]),
        (FedAvgM(momentum=0.0), []),
    ],
)
def test_impossible_settings_are_told_all_at_once(algorithm: Algorithm, keys: list[str]) -> None:
    problems = algorithm.problems(setting_of([A]))
    assert len(problems) == len(keys)
    assert all(any(f"`algorithm.{key}`" in problem for problem in problems) for key in keys)
