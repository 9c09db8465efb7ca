"""Class labels: the one that counts for nothing, and which ones cannot be."""

from torch import Tensor

__all__ = ["IGNORED", "label_problems"]

IGNORED = -100
"""The target of a position that is not predicted (PyTorch's own default)."""


def label_problems(labels: Tensor, num_labels: int, key: str) -> list[str]:
    """What is wrong with class labels: not integers, or not from 0 to ``num_labels - 1``.

    Args:
        labels: Shape (N,).
        num_labels: Number of classes.
        key: The setting that says so.
    """
    if labels.is_floating_point() or labels.is_complex():
        return [f"Expected `labels` to be integers, but got {labels.dtype}. Number the classes from 0."]
    wrong = labels[(labels < 0) | (labels >= num_labels)]
    if not len(wrong):
        return []
    found = wrong.unique().tolist()
    return [
        f"Expected `labels` to be from 0 to {num_labels - 1}, but got {', '.join(map(str, found[:5]))}"
        f"{', ...' if len(found) > 5 else ''} ({len(wrong)} of {len(labels)} rows). Correct the labels or `{key}`."
    ]
