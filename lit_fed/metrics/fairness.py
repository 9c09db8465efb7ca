"""How evenly a result is spread over clients: functions of one number a client."""

import math
from collections.abc import Iterable

__all__ = ["jain", "mean", "spread", "std", "worst", "worst_share"]


def mean(values: Iterable[float]) -> float:
    """The unweighted mean: every client counts the same, however much data it holds."""
    checked = _checked(values)
    return math.fsum(checked) / len(checked)


def std(values: Iterable[float]) -> float:
    """The standard deviation over the clients (divided by their number: they are all there are, not a sample)."""
    checked = _checked(values)
    center = mean(checked)
    return math.sqrt(math.fsum((value - center) ** 2 for value in checked) / len(checked))


def worst(values: Iterable[float], higher_is_better: bool = True) -> float:
    """The worst client's value."""
    return (min if higher_is_better else max)(_checked(values))


def worst_share(values: Iterable[float], share: float = 0.1, higher_is_better: bool = True) -> float:
    """The mean over the worst `share` of the clients, rounded up to at least one client.

    Raises:
        ValueError: If `share` is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"Expected `share` to be in (0, 1], but got {share}.")
    ordered = sorted(_checked(values), reverse=not higher_is_better)
    # Rounded before the ceiling: 0.1 * 30 is 3.0000000000000004 in floating point.
    return mean(ordered[: max(1, math.ceil(round(share * len(ordered), 9)))])


def jain(values: Iterable[float]) -> float:
    r"""Jain's index :math:`(\sum x)^2 / (n \sum x^2)`: 1 if all are equal, 1/n if one client has everything.

    Values must not be negative. All zero is even, so the index is 1.

    Source: Jain, Chiu and Hawe, "A Quantitative Measure of Fairness and Discrimination" (DEC-TR-301, 1984).

    Raises:
        ValueError: If a value is negative.
    """
    checked = _checked(values)
    if min(checked) < 0:
        raise ValueError(f"Expected `values` to be >= 0, but got {min(checked)}.")
    squares = math.fsum(value * value for value in checked)
    return math.fsum(checked) ** 2 / (len(checked) * squares) if squares else 1.0


def spread(values: Iterable[float], higher_is_better: bool = True) -> dict[str, float]:
    """``mean``, ``std``, ``worst`` and ``worst_10_percent`` of one number a client."""
    checked = _checked(values)
    return {
        "mean": mean(checked),
        "std": std(checked),
        "worst": worst(checked, higher_is_better),
        "worst_10_percent": worst_share(checked, 0.1, higher_is_better),
    }


def _checked(values: Iterable[float]) -> list[float]:
    """The values as a list, sorted so that sums do not depend on the order of the clients.

    Raises:
        ValueError: If there are none, or one is NaN (which would compare as neither best nor worst).
    """
    checked = sorted(float(value) for value in values)
    if not checked:
        raise ValueError("Expected `values` to be one number a client, but got none.")
    if any(math.isnan(value) for value in checked):
        raise ValueError(f"Expected `values` to be numbers, but got NaN among {checked}.")
    return checked
