import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from lit_fed.core.aggregate import client_weight, mean
from lit_fed.core.errors import StateMismatchError
from lit_fed.core.types import Update

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def update(client: str, num_examples: float = 1, **adapter: float | list[float] | Tensor) -> Update:
    return Update(client, {name: torch.as_tensor(value) for name, value in adapter.items()}, num_examples)


def random_state(seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(3, 5, generator=rng), "b": torch.randn(7, generator=rng)}


def test_by_examples() -> None:
    # (1 * 1 + 3 * 5) / 4 = 4
    new = mean([update("x", 1, w=1.0), update("y", 3, w=5.0)], {"w": torch.zeros(())})
    assert new["w"] == 4.0


def test_uniform_ignores_examples() -> None:
    new = mean([update("x", 1, w=1.0), update("y", 3, w=5.0)], {"w": torch.zeros(())}, "uniform")
    assert new["w"] == 3.0


@pytest.mark.parametrize("weights", ["examples", "uniform"])
@pytest.mark.parametrize("sizes", [(1,), (7,), (3, 10, 31), (1, 2**20 + 1, 999_983)])
def test_mean_of_equal_states_is_the_state_exactly(weights: str, sizes: tuple[int, ...]) -> None:
    state = random_state(0)
    updates = [Update(str(i), state, size) for i, size in enumerate(sizes)]
    new = mean(updates, random_state(1), weights)
    assert all(torch.equal(new[name], state[name]) for name in state)


def test_order_of_arrival_changes_no_bit() -> None:
    updates = [Update(str(i), random_state(i), 10**i + 7) for i in range(4)]
    results = [mean(order, random_state(9)) for order in permutations(updates)]
    assert all(torch.equal(result[name], results[0][name]) for result in results for name in result)


def test_sums_run_in_client_order_whoever_comes_first() -> None:
    # In float64 too, (1e20 + 1) - 1e20 = 0, but (1e20 - 1e20) + 1 = 1.
    updates = [update("a", w=1e20), update("b", w=1.0), update("c", w=-1e20)]
    assert [mean(order, {"w": torch.ones(())})["w"] for order in permutations(updates)] == [0.0] * 6


def test_names_not_sent_keep_their_old_value() -> None:
    # Three blocks; rows [1,1,1], [0,1,0], [1,1,0]: (1+4)/2, (2+10+6)/3, 3.
    old = {"l0": torch.tensor(-1.0), "l1": torch.tensor(-2.0), "l2": torch.tensor(-3.0)}
    everyone = [update("0", l0=1.0, l1=2.0, l2=3.0), update("1", l1=10.0), update("2", l0=4.0, l1=6.0)]
    assert mean(everyone, old, "uniform") == {"l0": 2.5, "l1": 6.0, "l2": 3.0}
    assert mean(everyone[1:], old, "uniform") == {"l0": 4.0, "l1": 8.0, "l2": -3.0}


def test_weights_are_those_of_the_senders_of_a_name() -> None:
    # "b" comes from y alone: its weight cancels.
    new = mean([update("x", 1, a=0.0), update("y", 3, a=4.0, b=7.0)], {"a": torch.tensor(9.0), "b": torch.tensor(9.0)})
    assert new == {"a": 3.0, "b": 7.0}


def test_nobody_sent_anything() -> None:
    old = random_state(0)
    for updates in ([], [Update("x", {}, 5)]):
        new = mean(updates, old)
        assert all(torch.equal(new[name], old[name]) for name in old)


def test_sums_in_float64() -> None:
    # In float32, 1e8 + 1 - 1e8 = 0.
    new = mean([update("a", w=1e8), update("b", w=1.0), update("c", w=-1e8)], {"w": torch.zeros(())})
    assert new["w"] == torch.tensor(1 / 3)


def test_keeps_names_and_dtypes_of_the_server_and_mutates_nothing() -> None:
    old = {"w": torch.zeros(2, dtype=torch.bfloat16), "v": torch.zeros(1)}
    sent = update("x", w=[1.0, 2.0])
    new = mean([sent], old)
    assert list(new) == ["w", "v"]
    assert new["w"].dtype == torch.bfloat16
    assert old["w"].tolist() == [0, 0]
    assert sent.adapter["w"].tolist() == [1, 2]


def test_weights_that_sum_to_zero_name_the_clients() -> None:
    with pytest.raises(ValueError, match=r"sent 'w' to sum to more than 0, but got 0.* for \['x', 'y'\]"):
        mean([update("x", 0, w=1.0), update("y", 0, w=1.0)], {"w": torch.zeros(())})


def test_zero_weights_are_enough_where_nothing_was_sent() -> None:
    assert mean([Update("x", {}, 0)], {"w": torch.tensor(2.0)}) == {"w": 2.0}


@pytest.mark.parametrize("size", [-1, math.nan, math.inf])
def test_weights_are_finite_and_not_negative(size: float) -> None:
    with pytest.raises(ValueError, match="client 'x' to be finite and >= 0"):
        mean([update("x", size, w=1.0)], {"w": torch.zeros(())})
    assert client_weight(update("x", size), "uniform") == 1.0


def test_unknown_name() -> None:
    with pytest.raises(StateMismatchError, match="'x' sent 'v', which the server does not know"):
        mean([update("x", v=1.0)], {"w": torch.zeros(())})


def test_wrong_shape() -> None:
    with pytest.raises(StateMismatchError, match=r"sent 'w' with shape \(2,\), but the server holds \(3,\)"):
        mean([update("x", w=[1.0, 2.0])], {"w": torch.zeros(3)})
