"""Numbers about a federation: fairness over clients, and metrics that weigh what they average."""

from lit_fed.metrics.fairness import jain, spread, worst_share
from lit_fed.metrics.names import higher_is_better, primary

__all__ = ["higher_is_better", "jain", "primary", "spread", "worst_share"]
