"""What runs that differ in their seed alone say together: mean, spread, and a paired test."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["PairedTest", "Spread", "least_difference", "paired_test"]

_ROUNDING = 1e-12  # differences that vary by less than this share of the values differ by rounding only


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of one number a seed."""

    mean: float
    std: float | None
    """Over the seeds as a sample: divided by their number minus one. `None` of a single seed."""

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Of at least one value."""
        given = np.array(list(values), dtype=np.float64)
        return cls(float(given.mean()), float(given.std(ddof=1)) if len(given) > 1 else None)


@dataclass(frozen=True)
class PairedTest:
    """A two-sided paired t-test of one experiment against the baseline, over the seeds that both have."""

    difference: float
    """Mean of experiment minus baseline."""
    p: float | None
    """`None` if there is no test to make; `why_not` says why."""
    num_seeds: int
    why_not: str = ""


def paired_test(own: Mapping[int, float], baseline: Mapping[int, float]) -> PairedTest | None:
    """Compare two experiments, each a value a seed; `None` if they share no seed."""
    seeds = sorted(own.keys() & baseline.keys())
    if not seeds:
        return None
    ours, theirs = (np.array([values[seed] for seed in seeds], dtype=np.float64) for values in (own, baseline))
    differences = ours - theirs
    mean = float(differences.mean())
    why_not = _why_not(differences, float(np.abs([ours, theirs]).max()))
    if why_not:
        return PairedTest(mean, None, len(seeds), why_not)
    from scipy.stats import ttest_rel  # takes a second to import

    return PairedTest(mean, float(ttest_rel(ours, theirs).pvalue), len(seeds))


def _why_not(differences: np.ndarray, largest: float) -> str:
    if not np.isfinite(differences).all():
        return "not finite"
    if len(differences) < 2:
        return "one seed"
    if np.ptp(differences) <= _ROUNDING * largest:
        return "equal" if abs(differences[0]) <= _ROUNDING * largest else "same at every seed"
    return ""


def least_difference(num_seeds: int, level: float = 0.05) -> float:
    """The smallest mean difference that a paired t-test calls significant, in standard deviations of the differences.

    Args:
        num_seeds: At least two.
        level: Of the two-sided test.
    """
    from scipy.stats import t

    return float(t.ppf(1 - level / 2, num_seeds - 1)) / math.sqrt(num_seeds)
