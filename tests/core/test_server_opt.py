"""Hand values; torch.optim's SGD; and Reddi et al., Algorithm 2, written out with scalars."""

import math

import pytest
import torch
from torch import Tensor

from lit_fed.core.server_opt import Adam, ServerOptimizer, Sgd, Yogi

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def follow(rule: ServerOptimizer, start: float, means: list[float]) -> list[float]:
    """The server's value after each round, all in float64."""
    value, state, path = {"w": torch.tensor(start, dtype=torch.float64)}, {}, []
    for mean in means:
        value, state = rule.step(value, {"w": torch.tensor(mean, dtype=torch.float64)}, state)
        path.append(value["w"].item())
    return path


def states(seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(50, generator=rng)}, {"w": torch.randn(50, generator=rng)}


@pytest.mark.parametrize("nesterov", [False, True])
def test_plain_sgd_returns_the_mean_bit_for_bit_and_remembers_nothing(nesterov: bool) -> None:
    old, mean = states(0)
    new, state = Sgd(1.0, 0.0, nesterov).step(old, mean, {})
    assert torch.equal(new["w"], mean["w"])
    assert new["w"].dtype == torch.float32
    assert state == {}


def test_momentum_by_hand() -> None:
    # Round 1: delta = 1 - 0 = 1, v = 1, w = 1 - 1 = 0.  Round 2: delta = 0 - (-1) = 1, v = 0.5 + 1, w = -1.5.
    assert follow(Sgd(1.0, 0.5), 1.0, [0.0, -1.0]) == [0.0, -1.5]


def test_nesterov_by_hand() -> None:
    # Round 1: delta = 1, v = 1, w = 1 - (1 + 0.5) = -0.5.  Round 2: delta = 0.5, v = 1, w = -0.5 - (0.5 + 0.5) = -1.5.
    assert follow(Sgd(1.0, 0.5, nesterov=True), 1.0, [0.0, -1.0]) == [-0.5, -1.5]


@pytest.mark.parametrize("lr", [0.7, 1.0])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_is_torchs(lr: float, momentum: float, nesterov: bool) -> None:
    old, _ = states(1)
    parameter = torch.nn.Parameter(old["w"].double())
    optimizer = torch.optim.SGD([parameter], lr=lr, momentum=momentum, nesterov=nesterov)
    value, state = {"w": old["w"].double()}, {}
    for seed in range(2, 6):
        mean = {"w": states(seed)[1]["w"].double()}
        parameter.grad = (parameter - mean["w"]).detach()
        optimizer.step()
        value, state = Sgd(lr, momentum, nesterov).step(value, mean, state)
        assert torch.allclose(value["w"], parameter, rtol=0, atol=1e-13)  # float64, sums in another order


def test_adam_one_round_by_hand() -> None:
    # Delta = -1 in the paper's sign; m = 0.1 * -1; v = 0.99 * 0.1**2 + 0.01 * 1 = 0.0199; x = 1 - 0.1 * 0.5 / ...
    [value] = follow(Adam(lr=0.5, beta1=0.9, beta2=0.99, tau=0.1), 1.0, [0.0])
    assert value == pytest.approx(1 - 0.5 * 0.1 / (math.sqrt(0.0199) + 0.1), abs=1e-15)


def test_yogi_one_round_by_hand() -> None:
    # v = 0.01 - 0.01 * 1 * sign(0.01 - 1) = 0.02
    [value] = follow(Yogi(lr=0.5, beta1=0.9, beta2=0.99, tau=0.1), 1.0, [0.0])
    assert value == pytest.approx(1 - 0.5 * 0.1 / (math.sqrt(0.02) + 0.1), abs=1e-15)


@pytest.mark.parametrize("rule", [Adam, Yogi])
def test_adaptive_rules_follow_the_papers_box(rule: type[Adam] | type[Yogi]) -> None:
    lr, beta1, beta2, tau = 0.3, 0.8, 0.95, 0.01
    x, m, v, expected = 2.0, 0.0, tau**2, []
    means = [1.5, 1.6, 1.0, 1.1]
    for mean in means:
        delta = mean - x  # the paper's sign: towards the clients
        m = beta1 * m + (1 - beta1) * delta
        if rule is Adam:
            v = beta2 * v + (1 - beta2) * delta**2
        else:
            v = v - (1 - beta2) * delta**2 * math.copysign(1, v - delta**2)
        x = x + lr * m / (math.sqrt(v) + tau)
        expected.append(x)
    assert follow(rule(lr, beta1, beta2, tau), 2.0, means) == pytest.approx(expected, abs=1e-13)


def test_yogi_lets_the_second_moment_shrink_by_at_most_the_change() -> None:
    # After a large change v is large; a small one moves Yogi's v by (1 - beta2) * 0.01, Adam's by 10 % of v.
    _, big = Yogi(beta2=0.9, tau=0.1).step({"w": torch.tensor(10.0)}, {"w": torch.tensor(0.0)}, {})
    _, small = Yogi(beta2=0.9, tau=0.1).step({"w": torch.tensor(0.1)}, {"w": torch.tensor(0.0)}, big)
    shrinkage = (big["v"]["w"] - small["v"]["w"]).item()
    assert shrinkage == pytest.approx(0.1 * 0.01, rel=1e-6)  # 0.1 as float32


@pytest.mark.parametrize("rule", [Sgd(0.5, 0.9), Sgd(0.5, 0.9, nesterov=True), Adam(), Yogi()])
def test_nothing_moves_at_rest_and_nothing_passed_in_is_changed(rule: ServerOptimizer) -> None:
    old, _ = states(3)
    copy = old["w"].clone()
    new, state = rule.step(old, old, {})
    again, _ = rule.step(new, old, state)
    assert torch.equal(again["w"], copy)
    assert torch.equal(old["w"], copy)


@pytest.mark.parametrize("rule", [Sgd(1.0, 0.9), Adam(), Yogi()])
def test_state_of_a_round_is_not_changed_by_the_next(rule: ServerOptimizer) -> None:
    old, mean = states(4)
    new, state = rule.step(old, mean, {})
    before = {key: value["w"].clone() for key, value in state.items()}
    rule.step(new, mean, state)
    assert all(torch.equal(state[key]["w"], before[key]) for key in before)
    assert all(value["w"].dtype == torch.float64 for value in state.values())
