import math

import pytest
import torch

from lit_fed.metrics.mean import Mean, Perplexity


def test_mean_is_weighted() -> None:
    mean = Mean()
    mean.update(torch.tensor(1.0), torch.tensor(3))
    mean.update(torch.tensor(5.0), 1)
    assert mean.compute().item() == 2.0  # (3 * 1 + 1 * 5) / 4


def test_mean_of_a_tensor_with_a_mask() -> None:
    mean = Mean()
    mean.update(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    assert mean.compute().item() == pytest.approx(2 / 3)


def test_nan_is_not_hidden() -> None:
    mean = Mean()
    mean.update(torch.tensor(math.nan), 1)
    mean.update(torch.tensor(1.0), 1)
    assert math.isnan(mean.compute().item())


def test_updates_wait_for_no_device() -> None:
    mean = Mean().to("meta")  # there is nothing that could be read
    mean.update(torch.zeros(4, device="meta"), torch.ones(4, device="meta"))
    assert mean.compute().device.type == "meta"


def test_perplexity_is_the_exponential_of_the_mean_over_tokens() -> None:
    perplexity = Perplexity()
    perplexity.update(torch.tensor(math.log(2.0)), torch.tensor(3))
    perplexity.update(torch.tensor(math.log(32.0)), torch.tensor(1))
    # (3 log 2 + 5 log 2) / 4 = log 4; the weighted mean of the two perplexities would be 9.5
    assert perplexity.compute().item() == pytest.approx(4.0, rel=1e-6)
    perplexity.reset()
    perplexity.update(torch.tensor(0.0), torch.tensor(1))
    assert perplexity.compute().item() == 1.0
