"""What the name of a metric says, as it stands in ``summary.json``."""

from collections.abc import Iterable

__all__ = ["higher_is_better", "primary"]

_LOWER_IS_BETTER = ("loss", "perplexity", "error", "mae", "mse")


def higher_is_better(metric: str) -> bool:
    """Losses, errors and perplexities are better low, everything else high."""
    return not any(word in metric for word in _LOWER_IS_BETTER)


def primary(names: Iterable[str]) -> str:
    """The metric that tables and pictures show: accuracy if the module reports it, else the first it does.

    Args:
        names: Of metrics, as in ``summary.json``.
    """
    names = list(names)
    known = [name.removeprefix("global/") for name in names if name.startswith("global/")] or [
        name.removeprefix("personal/").removesuffix("_mean")
        for name in names
        if name.startswith("personal/") and name.endswith("_mean")
    ]
    return "accuracy" if "accuracy" in known else known[0] if known else "loss"
