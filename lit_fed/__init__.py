"""Federated tuning of foundation models, over PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_fed.algorithms import (
        AllLarge,
        AllSmall,
        Centralized,
        DepthFL,
        Ditto,
        ExclusiveFL,
        FDLoRA,
        FedAdam,
        FedAMP,
        FedAvg,
        FedAvgFT,
        FedAvgM,
        FedCLIP,
        FedDPA,
        FedExLoRA,
        FedFMSL,
        FedKD,
        FedPer,
        FedProx,
        FedRA,
        FedRep,
        FedRoD,
        FedYogi,
        FFALoRA,
        FlexLoRA,
        FLoRA,
        Frozen,
        HetLoRA,
        InclusiveFL,
        Local,
        PromptFL,
    )
    from lit_fed.cli.exported import load_export
    from lit_fed.data import Digits, FederatedDataModule, HubData, SplitLists, SystemLogs, WithinDomains
    from lit_fed.engine import Federation, Result
    from lit_fed.modules import CausalLM, ImageClassifier, TextClassifier, ZeroShotClassifier
    from lit_fed.report import write_report
    from lit_fed.suite import Comparison, compare

__version__ = "0.1.0"

__all__ = [
    "AllLarge",
    "AllSmall",
    "CausalLM",
    "Centralized",
    "Comparison",
    "DepthFL",
    "Digits",
    "Ditto",
    "ExclusiveFL",
    "FDLoRA",
    "FFALoRA",
    "FLoRA",
    "FedAMP",
    "FedAdam",
    "FedAvg",
    "FedAvgFT",
    "FedAvgM",
    "FedCLIP",
    "FedDPA",
    "FedExLoRA",
    "FedFMSL",
    "FedKD",
    "FedPer",
    "FedProx",
    "FedRA",
    "FedRep",
    "FedRoD",
    "FedYogi",
    "FederatedDataModule",
    "Federation",
    "FlexLoRA",
    "Frozen",
    "HetLoRA",
    "HubData",
    "ImageClassifier",
    "InclusiveFL",
    "Local",
    "PromptFL",
    "Result",
    "SplitLists",
    "SystemLogs",
    "TextClassifier",
    "WithinDomains",
    "ZeroShotClassifier",
    "compare",
    "load_export",
    "write_report",
]

_HOME = {
    "lit_fed.cli.exported": {"load_export"},
    "lit_fed.data": {"Digits", "FederatedDataModule", "HubData", "SplitLists", "SystemLogs", "WithinDomains"},
    "lit_fed.engine": {"Federation", "Result"},
    "lit_fed.modules": {"CausalLM", "ImageClassifier", "TextClassifier", "ZeroShotClassifier"},
    "lit_fed.report": {"write_report"},
    "lit_fed.suite": {"Comparison", "compare"},
}


def __getattr__(name: str) -> Any:
    """Import on first use: `lit-fed --help` need not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((module for module, names in _HOME.items() if name in names), "lit_fed.algorithms")
    return getattr(import_module(home), name)
