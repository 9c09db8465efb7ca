import numpy as np
import pytest
import torch

from lit_fed.data.held_out import held_out, num_held_out


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("num_examples", [1, 2, 3, 10, 101])
@pytest.mark.parametrize(("val", "test"), [(0.0, 0.0), (0.1, 0.2), (0.5, 0.4), (0.0, 0.3)])
@pytest.mark.parametrize("kind", ["plain", "strata", "groups"])
def test_the_parts_are_a_partition_with_something_to_train_on(
    num_examples: int, val: float, test: float, kind: str
) -> None:
    ids = np.arange(num_examples) % 3
    options = {} if kind == "plain" else {kind: ids}
    parts = held_out(val, test, random(), num_examples=num_examples, **options)
    assert sorted(np.concatenate(parts).tolist()) == list(range(num_examples))
    assert len(parts[0]) > 0
    assert all((np.diff(part) > 0).all() for part in parts)


def test_sizes_are_the_fractions_of_the_whole() -> None:
    assert num_held_out(50, 0.1, 0.2) == (5, 10)


@pytest.mark.parametrize(("num_examples", "expected"), [(0, (0, 0)), (1, (0, 0)), (2, (0, 1)), (3, (1, 1))])
def test_small_clients_train_first_then_test_then_validate(num_examples: int, expected: tuple[int, int]) -> None:
    assert num_held_out(num_examples, 0.1, 0.2) == expected


def test_a_fraction_of_zero_holds_nothing_out() -> None:
    assert num_held_out(1000, 0.0, 0.0) == (0, 0)


def test_labels_keep_their_proportions_to_within_one_example() -> None:
    strata = np.repeat([0, 1, 2], [50, 33, 17])
    _, val, test = held_out(0.1, 0.2, random(), num_examples=100, strata=strata)
    # 20 of 100: 10, 6.6, 3.4 of the labels; 10 of 100: 5, 3.3, 1.7
    assert len(test) == 20
    assert len(val) == 10
    for part, exact in ((test, [10, 6.6, 3.4]), (val, [5, 3.3, 1.7])):
        assert np.abs(np.bincount(strata[part], minlength=3) - exact).max() < 1


def test_what_divides_evenly_is_divided_exactly() -> None:
    strata = np.arange(60) % 6
    _, _, test = held_out(0.0, 0.3, random(), num_examples=60, strata=strata)
    assert np.bincount(strata[test]).tolist() == [3] * 6


def test_groups_are_not_torn_apart() -> None:
    groups = np.array(["a", "b", "c", "d", "e"] * 4)
    parts = held_out(0.2, 0.2, random(), num_examples=20, groups=groups)
    seen = [set(groups[part]) for part in parts]
    assert seen[0] | seen[1] | seen[2] == set("abcde")
    assert sum(map(len, seen)) == 5


def test_the_seed_decides() -> None:
    draws = [held_out(0.1, 0.2, random(seed), num_examples=100)[2].tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
