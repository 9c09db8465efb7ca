"""Matrices sent as factors, with singular values that are known."""

import pytest
import torch

from lit_fed.core.compress import compress, decompress
from lit_fed.core.errors import StateMismatchError
from lit_fed.core.tree import num_bytes

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


@pytest.mark.parametrize(("energy", "rank"), [(0.5, 1), (0.64, 1), (0.65, 2), (0.99, 2), (1.0, 2)])
def test_as_few_directions_as_hold_the_energy(energy, rank):
    """Singular values 4 and 3: 16 of 25 parts, 0.64, are in the first."""
    matrix = torch.diag(torch.tensor([3.0, 4.0, 0.0, 0.0, 0.0, 0.0]))
    sent = compress({"x": matrix}, energy)
    assert {name: tuple(t.shape) for name, t in sent.items()} == {"x.left": (6, rank), "x.right": (rank, 6)}
    expected = matrix if rank == 2 else torch.diag(torch.tensor([0.0, 4.0, 0.0, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(decompress(sent, {"x": matrix})["x"], expected, rtol=0, atol=1e-6)


def test_factors_are_sent_only_if_they_are_smaller():
    """Two directions of a 4 x 4 matrix are 16 numbers, as many as it has; one is 8."""
    matrix = torch.diag(torch.tensor([4.0, 3.0, 0.0, 0.0]))
    assert compress({"x": matrix}, 0.7)["x"] is matrix
    assert num_bytes(compress({"x": matrix}, 0.6)) == 4 * 8
    vector = torch.ones(100)
    assert compress({"x": vector}, 0.1)["x"] is vector


def test_nothing_takes_nothing():
    sent = compress({"x": torch.zeros(5, 5)}, 0.9)
    assert num_bytes(sent) == 0
    assert torch.equal(decompress(sent, {"x": torch.ones(5, 5)})["x"], torch.zeros(5, 5))


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (6, 4, 3, 3)])
def test_what_is_lost_is_less_than_the_rest_of_the_energy(shape):
    random = torch.Generator().manual_seed(0)
    tensor = torch.randn(shape, generator=random)
    back = decompress(compress({"x": tensor}, 0.7), {"x": tensor})["x"]
    assert back.shape == tensor.shape
    assert 0 < (back - tensor).square().sum() <= 0.3 * tensor.square().sum() * (1 + 1e-6)


def test_what_does_not_fit_is_told():
    like = {"x": torch.zeros(5, 5)}
    with pytest.raises(
        StateMismatchError, match=r"factors of 'x' to make a matrix of shape \(5, 5\), but got \(5, 4\)"
    ):
        decompress({"x.left": torch.zeros(5, 1), "x.right": torch.zeros(1, 4)}, like)
    with pytest.raises(StateMismatchError, match=r"Expected 'x' or its two factors"):
        decompress({"x.left": torch.zeros(5, 1)}, like)
