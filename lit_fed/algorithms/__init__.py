"""Federated methods, one a file."""

from lit_fed.algorithms.base import Algorithm, Learner, Serving, Step
from lit_fed.algorithms.centralized import Centralized
from lit_fed.algorithms.fedavg import FedAvg
from lit_fed.algorithms.fedprox import FedProx
from lit_fed.algorithms.frozen import Frozen
from lit_fed.algorithms.local import Local
from lit_fed.algorithms.server_opt import FedAdam, FedAvgM, FedYogi

__all__ = [
    "Algorithm",
    "Centralized",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedProx",
    "FedYogi",
    "Frozen",
    "Learner",
    "Local",
    "Serving",
    "Step",
]
