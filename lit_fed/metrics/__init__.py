"""Numbers about a federation: means that merge exactly, fairness over clients, bytes over the network."""

from lit_fed.metrics.fairness import jain, spread, worst_share
from lit_fed.metrics.traffic import Traffic, task_bytes, update_bytes
from lit_fed.metrics.weighted import WeightedMean, as_pairs, means, merge

__all__ = [
    "Traffic",
    "WeightedMean",
    "as_pairs",
    "jain",
    "means",
    "merge",
    "spread",
    "task_bytes",
    "update_bytes",
    "worst_share",
]
