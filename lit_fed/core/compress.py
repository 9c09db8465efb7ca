r"""Matrices sent as two thin factors: as few singular directions as keep a share of the energy.

.. math:: G \approx U_K \Sigma_K V_K^T, \qquad
          K = \min \Big\{ k : \sum_{i \le k} \sigma_i^2 \ge T \sum_i \sigma_i^2 \Big\}

A tensor ``x`` of shape (m, ...), with n numbers in a row, becomes ``x.left`` (m, K), which is :math:`U_K \Sigma_K`, and
``x.right`` (K, n), if these are fewer numbers. Otherwise, and if it is a vector, it stays whole.
"""

import torch
from torch import Tensor

from lit_fed.core.errors import StateMismatchError
from lit_fed.core.types import AdapterState

LEFT, RIGHT = "left", "right"


def compress(state: AdapterState, energy: float) -> dict[str, Tensor]:
    """Factorise what is smaller that way.

    Args:
        state: Tensors by name.
        energy: Share of the sum of squared singular values that is kept, in (0, 1].
    """
    sent: dict[str, Tensor] = {}
    for name, tensor in state.items():
        factors = None if tensor.ndim < 2 or tensor.is_meta else _factors(tensor.flatten(1), energy)
        if factors is None:  # a tensor without values, as in a dry run, is counted whole, which is the most it takes
            sent[name] = tensor
        else:
            sent[f"{name}.{LEFT}"], sent[f"{name}.{RIGHT}"] = factors
    return sent


def decompress(sent: AdapterState, like: AdapterState) -> dict[str, Tensor]:
    """Undo `compress`, as far as can be.

    Args:
        sent: What `compress` returned.
        like: Names and shapes of what was compressed.

    Raises:
        StateMismatchError: If that is not what `sent` holds.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in like.items():
        left, right = sent.get(f"{name}.{LEFT}"), sent.get(f"{name}.{RIGHT}")
        if left is not None and right is not None:
            product = left.double() @ right.double()
            if product.shape != tensor.flatten(1).shape:
                raise StateMismatchError(
                    f"Expected factors of {name!r} to make a matrix of shape {tuple(tensor.flatten(1).shape)}, but got"
                    f" {tuple(product.shape)}."
                )
            state[name] = product.reshape(tensor.shape).to(tensor.dtype)
        elif name in sent:
            state[name] = sent[name]
        else:
            raise StateMismatchError(f"Expected {name!r} or its two factors, but got {sorted(sent)[:3]} ...")
    return state


def _factors(matrix: Tensor, energy: float) -> tuple[Tensor, Tensor] | None:
    """The two factors of a matrix of shape (m, n), or `None` if they are no smaller."""
    u, strengths, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    kept = strengths.square().cumsum(0)
    # how many partial sums fall short, and one more; none of a matrix of zeros
    rank = int((kept < energy * kept[-1]).sum()) + 1 if kept[-1] > 0 else 0
    m, n = matrix.shape
    if rank * (m + n) >= m * n:
        return None
    left = (u[:, :rank] * strengths[:rank]).to(matrix.dtype).contiguous()
    return left, v[:rank].to(matrix.dtype).contiguous()
