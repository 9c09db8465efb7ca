"""The one aggregation primitive: per name, the weighted mean over the clients that sent it, else the old value."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from lit_fed.core.errors import StateMismatchError
from lit_fed.core.types import AdapterState, Update

Weights = Literal["examples", "uniform"]


def mean(updates: Iterable[Update], old: AdapterState, weights: Weights = "examples") -> dict[str, Tensor]:
    r"""Average what the clients sent, name by name.

    .. math:: \theta_n = \frac{\sum_{k \in S_n} w_k \theta_{k,n}}{\sum_{k \in S_n} w_k},
              \qquad S_n = \{k : k \text{ sent } n\}

    and :math:`\theta_n` keeps its old value where :math:`S_n` is empty. Sums run in client-id order in float64, so the
    result depends neither on the order of arrival nor on the number of processes, and the mean of equal states is
    that state, exactly.

    LoRA factors are averaged as they come, A and B apart (FedIT); that is *not* the mean of the products BA.

    Args:
        updates: What the clients sent, in any order.
        old: The state before the round; also says which names are allowed, and their shapes.
        weights: ``"examples"`` (by the number of training examples) or ``"uniform"``.

    Returns:
        A state with the names and dtypes of `old`.

    Raises:
        StateMismatchError: If a client sent an unknown name or a wrong shape.
        ValueError: If weights are negative, not finite, or sum to zero over the clients that sent a name.
    """
    ordered = sorted(updates, key=lambda update: update.client)
    weight_of = {update.client: client_weight(update, weights) for update in ordered}
    for update in ordered:
        check_fits(update, old)
    new: dict[str, Tensor] = {}
    for name, old_value in old.items():
        senders = [update for update in ordered if name in update.adapter]
        new[name] = _mean_of(name, senders, weight_of).to(old_value.dtype) if senders else old_value
    return new


def client_weight(update: Update, weights: Weights) -> float:
    """The weight of one update, checked to be non-negative and finite."""
    weight = float(update.num_examples) if weights == "examples" else 1.0
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"Expected the weight of client {update.client!r} to be finite and >= 0, but got {weight}.")
    return weight


def check_fits(update: Update, old: AdapterState) -> None:
    """Raise `StateMismatchError` if an update has names or shapes that the server's state does not have."""
    for name, tensor in update.adapter.items():
        if name not in old:
            raise StateMismatchError(f"Client {update.client!r} sent {name!r}, which the server does not know.")
        if tensor.shape != old[name].shape:
            raise StateMismatchError(
                f"Client {update.client!r} sent {name!r} with shape {tuple(tensor.shape)}, "
                f"but the server holds {tuple(old[name].shape)}."
            )


def _mean_of(name: str, senders: list[Update], weight_of: dict[str, float]) -> Tensor:
    weights = [weight_of[update.client] for update in senders]
    _check_sum(weights, senders, repr(name))
    return weighted_mean([update.adapter[name] for update in senders], weights)


def client_weights(updates: Sequence[Update], weights: Weights) -> list[float]:
    """The weight of each update, for a mean that is not one of single tensors.

    Raises:
        ValueError: If weights are negative, not finite, or sum to zero.
    """
    found = [client_weight(update, weights) for update in updates]
    _check_sum(found, updates, "an update")
    return found


def _check_sum(weights: Sequence[float], senders: Sequence[Update], what: str) -> None:
    if (total := math.fsum(weights)) <= 0:
        raise ValueError(
            f"Expected the weights of the clients that sent {what} to sum to more than 0, but got {total} "
            f"for {[update.client for update in senders]}. "
            "Use `weights: uniform`, or leave out clients without examples."
        )


def weighted_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The mean of tensors of one shape, in float64 on the CPU, summed in the order given.

    Args:
        tensors: One or more.
        weights: One each, >= 0, with a positive sum.
    """
    accumulator = torch.zeros_like(tensors[0], dtype=torch.float64, device="cpu")
    for tensor, weight in zip(tensors, weights, strict=True):
        accumulator.add_(tensor.to("cpu", torch.float64), alpha=weight)
    return accumulator.div_(math.fsum(weights))
