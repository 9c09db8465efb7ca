import math

import pytest
import torch

from lit_fed.metrics.perplexity import Perplexity


def test_is_the_exponential_of_the_mean_over_tokens() -> None:
    perplexity = Perplexity()
    perplexity.update(torch.tensor(math.log(2.0)), torch.tensor(3))
    perplexity.update(torch.tensor(math.log(32.0)), torch.tensor(1))
    # (3 log 2 + 5 log 2) / 4 = 2 log 2; the mean of the two perplexities would be 17, weighted 9.5
    assert perplexity.compute().item() == pytest.approx(4.0, rel=1e-6)
    perplexity.reset()
    perplexity.update(torch.tensor(0.0), torch.tensor(1))
    assert perplexity.compute().item() == 1.0
