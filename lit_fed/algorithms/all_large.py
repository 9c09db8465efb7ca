"""AllLarge: what FedRA would reach if every client could hold the whole model. A ceiling.

FedAvg with uniform weights, as in the code of FedRA (Su et al., ECCV 2024).
"""

from lit_fed.algorithms.fedavg import FedAvg
from lit_fed.core.aggregate import Weights


class AllLarge(FedAvg):
    """Every client holds all blocks, whatever it could hold.

    Args:
        weights: ``"uniform"`` (the authors' code) or ``"examples"``.
        local_steps: Optimizer steps of a client's turn, or
        local_epochs: its passes over the client's training data. Give exactly one; neither means one epoch.
    """

    def __init__(
        self, weights: Weights = "uniform", local_steps: int | None = None, local_epochs: int | None = None
    ) -> None:
        super().__init__(weights, local_steps, local_epochs)
