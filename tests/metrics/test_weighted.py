import math

import pytest
import torch

from lit_fed.metrics import WeightedMean, as_pairs, means, merge


def test_mean_is_over_examples_not_over_batches() -> None:
    mean = WeightedMean()
    mean.update("loss", torch.tensor(1.0), weight=3)
    mean.update("loss", 5.0, weight=torch.tensor(1))
    assert mean.pairs() == {"loss": (8.0, 4.0)}
    assert mean.means() == {"loss": 2.0}  # the mean of the batch means would be 3


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_merging_parts_equals_the_whole(cut: int) -> None:
    values = [0.5, 1.25, -2.0, 8.0, 0.125, 3.0, 1.0]  # sums of these are exact in binary
    whole, first, second = WeightedMean(), WeightedMean(), WeightedMean()
    for index, value in enumerate(values):
        whole.update("x", value, index + 1)
        (first if index < cut else second).update("x", value, index + 1)
    assert merge([first.pairs(), second.pairs()]) == whole.pairs()


def test_merge_keeps_names_that_only_some_have() -> None:
    assert merge([{"a": (1.0, 2.0)}, {"b": (3.0, 1.0)}, {"a": (1.0, 2.0)}]) == {"a": (2.0, 4.0), "b": (3.0, 1.0)}
    assert merge([]) == {}


def test_many_small_values_do_not_drown() -> None:
    mean = WeightedMean()
    mean.update("x", torch.tensor(2.0**24))
    for _ in range(100):
        mean.update("x", torch.tensor(1.0))  # float32 has no 2**24 + 1
    assert mean.pairs() == {"x": (2.0**24 + 100, 101.0)}


def test_no_graph_is_kept() -> None:
    mean = WeightedMean()
    mean.update("x", torch.tensor(1.0, requires_grad=True) * 2)
    assert not any(isinstance(v, torch.Tensor) and v.requires_grad for pair in mean._sums.values() for v in pair)


def test_nothing_waits_for_the_device_before_it_is_read() -> None:
    mean = WeightedMean()
    meta = torch.zeros((), device="meta")  # a value that can never be read
    mean.update("x", meta, meta)
    with pytest.raises((RuntimeError, NotImplementedError)):
        mean.pairs()


def test_no_weight_gives_nan_and_reset_forgets() -> None:
    mean = WeightedMean()
    mean.update("x", 1.0, 0)
    assert math.isnan(mean.means()["x"])
    mean.reset()
    assert mean.means() == {}


def test_as_pairs_inverts_means() -> None:
    assert means(as_pairs({"a": 0.25, "b": -3.0}, 8)) == {"a": 0.25, "b": -3.0}
