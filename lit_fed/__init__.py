"""Federated tuning of foundation models, over PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_fed.algorithms import Centralized, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi, Frozen, Local
    from lit_fed.data import Digits, FederatedDataModule, HubData
    from lit_fed.engine import Federation, Result
    from lit_fed.modules import CausalLM, ImageClassifier, TextClassifier

__version__ = "0.1.0"

_HOME = {
    "lit_fed.algorithms": ["Centralized", "FedAdam", "FedAvg", "FedAvgM", "FedProx", "FedYogi", "Frozen", "Local"],
    "lit_fed.data": ["Digits", "FederatedDataModule", "HubData"],
    "lit_fed.engine": ["Federation", "Result"],
    "lit_fed.modules": ["CausalLM", "ImageClassifier", "TextClassifier"],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [  # noqa: RUF022 (grouped by home)
    "Centralized", "FedAdam", "FedAvg", "FedAvgM", "FedProx", "FedYogi", "Frozen", "Local",
    "Digits", "FederatedDataModule", "HubData",
    "Federation", "Result",
    "CausalLM", "ImageClassifier", "TextClassifier",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import on first use: `lit-fed --help` need not wait for torch."""
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
