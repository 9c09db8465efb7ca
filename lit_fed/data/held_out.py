"""Which examples are kept from training, to validate and to test on."""

import numpy as np
import torch
from torch import Generator

__all__ = ["held_out", "num_held_out"]


def num_held_out(num_examples: int, val_fraction: float, test_fraction: float) -> tuple[int, int]:
    """How many of some examples validate and how many test, so that at least one is left to train.

    A fraction above zero gives at least one example, tests first, as far as there are enough.

    Returns:
        Validation and test examples.
    """
    left = max(num_examples - 1, 0)
    test = min(left, max(1, round(test_fraction * num_examples))) if test_fraction > 0 else 0
    left -= test
    val = min(left, max(1, round(val_fraction * num_examples))) if val_fraction > 0 else 0
    return val, test


def held_out(
    val_fraction: float,
    test_fraction: float,
    random: Generator,
    *,
    num_examples: int,
    strata: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Splits places 0..N-1 into training, validation and test.

    Args:
        val_fraction: Share of the examples to validate on.
        test_fraction: Share of the examples to test on.
        random: Decides which.
        num_examples: N.
        strata: Labels, ``(N,)``: each part then has the labels in the proportions of the whole, to within one example a
            label.
        groups: Ids, ``(N,)``: examples with the same id stay together. Fractions are then of the groups, and there are
            no strata.

    Returns:
        Places of the training, validation and test examples; disjoint, together all, each in increasing order.
    """
    if groups is not None:
        unique, codes = np.unique(groups, return_inverse=True)
        parts = held_out(val_fraction, test_fraction, random, num_examples=len(unique))
        part_of = np.empty(len(unique), dtype=np.int64)
        for part, members in enumerate(parts):
            part_of[members] = part
        return tuple(np.flatnonzero(part_of[codes] == part) for part in range(3))  # type: ignore[return-value]
    order = torch.randperm(num_examples, generator=random).numpy()
    val, test = num_held_out(num_examples, val_fraction, test_fraction)
    if strata is None:
        tested, validated = order[:test], order[test : test + val]
    else:
        tested = _draw(order, strata, test)
        rest = order[~np.isin(order, tested)]
        validated = _draw(rest, strata, val)
    trained = np.ones(num_examples, dtype=bool)
    trained[tested] = trained[validated] = False
    return np.flatnonzero(trained), np.sort(validated), np.sort(tested)


def _draw(order: np.ndarray, strata: np.ndarray, size: int) -> np.ndarray:
    """The first places in `order` of each label, by its share of `size`; largest remainders get what is over."""
    labels = strata[order]
    unique, first, counts = np.unique(labels, return_index=True, return_counts=True)
    if size == 0 or not len(unique):
        return order[:0]
    exact = counts * (size / len(order))
    quota = np.floor(exact + 1e-9).astype(np.int64)  # a product that should be whole may fall short of it by rounding
    # Equal remainders go by who comes first in the random order, so that no label is favoured by its number.
    by_remainder = np.lexsort((first, -(exact - quota).round(9)))
    quota[by_remainder[: size - int(quota.sum())]] += 1
    return np.concatenate([order[labels == label][:number] for label, number in zip(unique, quota, strict=True)])
