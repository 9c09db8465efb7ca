"""What is wrong with a module and data for an algorithm; it shows when the model is built and the data are divided."""

import math

import lightning.pytorch as pl
import torch

from lit_fed.adapters.state import AdapterView
from lit_fed.algorithms.base import Algorithm
from lit_fed.core.sampling import Sampling, cohort_size, per_domain_problems
from lit_fed.data.federated import FederatedDataModule


def setup_problems(
    module: pl.LightningModule, data: FederatedDataModule, algorithm: Algorithm, view: AdapterView, offload: bool
) -> list[str]:
    """Whether the algorithm can work with this module and these data; a sentence each, in the words of the settings."""
    return [
        *_module_problems(module, algorithm, view),
        *(view.fold_problems() if algorithm.folds else ()),
        *(_validation_problems(data, algorithm) if algorithm.needs_validation else ()),
        *_target_problems(module, data),
        *_offload_problems(offload, view),
    ]


def cohort_problems(data: FederatedDataModule, cohort: int | float, sampling: Sampling, min_updates: int) -> list[str]:
    """Whether there are as many clients as the settings of the cohort say."""
    wrong = _cohort_problems(len(data.clients), cohort, min_updates)
    return per_domain_problems(data.clients, cohort) if sampling == "per_domain" and not wrong else wrong


def _module_problems(module: pl.LightningModule, algorithm: Algorithm, view: AdapterView) -> list[str]:
    name = type(algorithm).__name__
    problems = [
        f"`algorithm: {name}` needs a module that offers `{method}(batch)`, and {type(module).__name__} does not. Add"
        " the method, or use a lit_fed.modules class."
        for method in sorted(algorithm.needs)
        if not callable(getattr(module, method, None))
    ]
    why_not = getattr(module, "offer_problems", None)
    problems += why_not(algorithm.needs) if callable(why_not) else []
    if not view.names:
        problems.append(
            f"{type(module).__name__} has no parameter that requires a gradient, so there is nothing to tune. Give it"
            " LoRA with `lit_fed.adapters.add_lora_`, or unfreeze its head."
        )
    return problems


def _offload_problems(offload: bool, view: AdapterView) -> list[str]:
    if not offload or view.blocks is not None:
        return []
    return [
        "Expected a model with transformer blocks for `federation.offload_blocks`, but none were found. Set it to"
        " false, or use a transformer whose blocks are equal."
    ]


def _validation_problems(data: FederatedDataModule, algorithm: Algorithm) -> list[str]:
    lacking = [client.id for client in data.clients if not len(data.allocation.held("val", client.id)[1])]
    if not lacking:
        return []
    return [
        f"`algorithm: {type(algorithm).__name__}` with these settings needs validation examples of every client, but "
        f"{len(lacking)} of {len(data.clients)} have none: {lacking[:3]}. Raise `data.val_fraction`, leave out small "
        "clients with `data.min_examples` and `data.small_clients: drop`, or choose settings that need none."
    ]


def _cohort_problems(num_clients: int, cohort: int | float, min_updates: int) -> list[str]:
    if isinstance(cohort, float) and not (0 < cohort <= 1 and math.isfinite(cohort)):
        return [f"Expected `federation.cohort` to be a number of clients or a fraction in (0, 1], but got {cohort}."]
    size = cohort_size(num_clients, cohort)
    problems = []
    if not 1 <= size <= num_clients:
        problems.append(
            f"Expected `federation.cohort` to be from 1 to {num_clients} (the clients there are), but got {cohort}."
        )
    if not 1 <= min_updates <= max(size, 1):
        problems.append(
            f"Expected `federation.min_updates` to be from 1 to the cohort's {size}, but got {min_updates}."
        )
    return problems


def _target_problems(module: pl.LightningModule, data: FederatedDataModule) -> list[str]:
    check, labels = getattr(module, "check_targets", None), data.allocation.labels
    if labels is None or not labels.is_codes or not callable(check):
        return []
    return list(check(torch.as_tensor(labels.values)))
