"""Products kept as factors, against dense matrices in float64."""

import math

import pytest
import torch

from lit_fed.core.products import Product, aggregation_error, mean_product, product

EXACT = 1e-12  # float64, with a few hundred terms to a sum


def factors(rank, m=7, n=5, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(rank, n, generator=random), torch.randn(m, rank, generator=random)


def dense(pair):
    a, b = pair
    return b.double() @ a.double()


def test_by_hand():
    one = product((torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [2.0]])))
    assert one.dense().tolist() == [[3.0, 4.0], [6.0, 8.0]]
    assert one.norm() == pytest.approx(5 * math.sqrt(5), rel=EXACT)


def test_a_convolution_is_a_matrix_of_its_kernels():
    a, b = torch.randn(2, 3, 4, 4), torch.randn(5, 2, 1, 1)
    expected = torch.einsum("or,rikl->oikl", b[:, :, 0, 0].double(), a.double())
    torch.testing.assert_close(product((a, b)).dense().reshape(5, 3, 4, 4), expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("ranks", [(1,), (2, 1), (2, 3, 4, 5)])  # the last with more components than rows
def test_mean_and_norm(ranks):
    pairs = [factors(rank, seed=i) for i, rank in enumerate(ranks)]
    weights = [float(i + 1) for i in range(len(ranks))]
    expected = sum(w * dense(pair) for w, pair in zip(weights, pairs, strict=True)) / sum(weights)
    mean = mean_product(pairs, weights)
    torch.testing.assert_close(mean.dense(), expected, rtol=0, atol=EXACT)
    assert mean.left.shape == (7, sum(ranks))
    assert mean.norm() == pytest.approx(float(expected.norm()), rel=EXACT)


@pytest.mark.parametrize("rank", [1, 2, 4, 9])
def test_the_best_approximation_is_that_of_the_dense_decomposition(rank):
    mean = mean_product([factors(2, seed=1), factors(2, seed=2)], [1.0, 3.0])  # of rank 4
    u, strengths, v = torch.linalg.svd(mean.dense(), full_matrices=False)
    expected = u[:, :rank] * strengths[:rank] @ v[:rank]
    best = mean.best(rank)
    torch.testing.assert_close(best.dense(), expected, rtol=0, atol=EXACT)
    assert len(best.right) == min(rank, 4)
    torch.testing.assert_close(best.left.norm(dim=0), strengths[:rank][:4], rtol=0, atol=EXACT)
    torch.testing.assert_close(best.right @ best.right.T, torch.eye(min(rank, 4)).double(), rtol=0, atol=EXACT)


def test_components_of_no_strength_keep_a_direction():
    """Two equal clients: a mean of rank 1, held with two components."""
    best = mean_product([factors(1), factors(1)], [1.0, 1.0]).best(2)
    torch.testing.assert_close(best.right @ best.right.T, torch.eye(2).double(), rtol=0, atol=EXACT)
    assert float(best.left[:, 1].norm()) < EXACT


@pytest.mark.parametrize("folded", [False, True])
def test_the_aggregation_error_is_that_of_dense_matrices(folded):
    exact = {
        layer: mean_product([factors(2, seed=i), factors(3, seed=i + 10)], [1.0, 2.0]) for i, layer in enumerate("pq")
    }
    start = {layer: product(factors(2, seed=i + 20)) for i, layer in enumerate("pq")}
    added = {layer: torch.full((7, 5), 0.5).double() for layer in "pq"} if folded else None
    gaps = [start[x].dense() + (added[x] if added else 0) - exact[x].dense() for x in "pq"]
    expected = torch.stack(gaps).norm() / torch.stack([exact[x].dense() for x in "pq"]).norm()
    assert aggregation_error(start, exact, added) == pytest.approx(float(expected), rel=EXACT)


def test_no_error():
    """Far below what norms by Gram matrices could tell from nothing (1e-8)."""
    mean = mean_product([factors(2), factors(3, seed=1)], [1.0, 2.0])
    parts = Product(mean.left.flip(1), mean.right.flip(0))  # the same matrix, summed in another order
    assert aggregation_error({"p": parts}, {"p": mean}) < EXACT


def test_errors_where_the_mean_is_zero():
    nothing = Product(torch.zeros(2, 1).double(), torch.ones(1, 3).double())
    something = Product(torch.ones(2, 1).double(), torch.ones(1, 3).double())
    assert aggregation_error({"p": nothing}, {"p": nothing}) == 0.0
    assert aggregation_error({"p": something}, {"p": nothing}) == math.inf
