"""Numbers about a federation: fairness over clients, and metrics that weigh what they average."""

from lit_fed.metrics.fairness import jain, spread, worst_share

__all__ = ["jain", "spread", "worst_share"]
