"""What can be said of a federation's settings before anything is loaded."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.model_helpers import is_overridden

from lit_fed.core.errors import ConfigError
from lit_fed.core.units import bytes_of
from lit_fed.data.federated import FederatedDataModule
from lit_fed.engine.foreign_callbacks import callback_problems
from lit_fed.engine.local_loop import MODULE_HOOKS

if TYPE_CHECKING:
    from lit_fed.engine.federation import Federation


def check_settings(federation: "Federation", module: Any, data: Any) -> None:
    """Raise `ConfigError` with every problem that can be seen before anything is loaded."""
    problems = []
    if not isinstance(module, pl.LightningModule):
        problems.append(
            f"Expected `module` to be a `lightning.pytorch.LightningModule`, but got {_class_of(module)}. If it"
            " comes from `pytorch_lightning`, import `lightning.pytorch` in its place: they are two libraries."
        )
    if not isinstance(data, FederatedDataModule):
        problems.append(
            f"Expected `data` to be a `lit_fed.FederatedDataModule`, but got {_class_of(data)}. Wrap a"
            " LightningDataModule in one, with a partitioner that says who holds what."
        )
    problems += [
        f"Expected `federation.{name}` to be >= {least}, but got {value}."
        for name, least in (
            ("rounds", 1), ("num_nodes", 1), ("accumulate_grad_batches", 1), ("min_updates", 1),
            ("batch_clients", 1), ("evaluate_every", 0), ("checkpoint_every", 1),
        )
        if (value := getattr(federation, name)) < least
    ]  # fmt: skip
    if federation.threads is not None and federation.threads < 1:
        problems.append(f"Expected `federation.threads` to be >= 1 or null, but got {federation.threads}.")
    if federation.cache is not None and bytes_of(federation.cache) is None:
        problems.append(
            "Expected `federation.cache` to read like '512 MB' or '2 GiB', or to be null, but got"
            f" {federation.cache!r}."
        )
    clip = federation.gradient_clip_val
    if clip is not None and not (clip > 0 and math.isfinite(clip)):
        problems.append(f"Expected `federation.gradient_clip_val` to be > 0 or null, but got {clip}.")
    if federation.strategy == "fsdp" and federation.parallel != "within":
        problems.append(
            "Expected `federation.parallel` to be 'within' with `strategy: fsdp`, which shards one client's model,"
            f" but got {federation.parallel!r}."
        )
    if federation.strategy == "fsdp" and federation.offload_blocks:
        problems.append(
            "Expected `federation.offload_blocks` to be false with `strategy: fsdp`, which has the blocks sharded over"
            " processes, but got true. Choose one of the two."
        )
    if federation.offload_blocks and federation.algorithm.folds:
        problems.append(
            "Expected `federation.offload_blocks` to be false with `algorithm:"
            f" {type(federation.algorithm).__name__}`, which adds to frozen weights, but got true. Set it to false:"
            " here all clients hold all blocks."
        )
    problems += [
        "Expected `federation.callbacks` to hold lit_fed or Lightning callbacks, but got"
        f" {type(callback).__name__}. Import callbacks from `lightning.pytorch`, not from `pytorch_lightning`."
        for callback in federation.unknown_callbacks
    ]
    problems += callback_problems(federation.lightning_callbacks, "federation.callbacks")
    if isinstance(module, pl.LightningModule):
        own = module.configure_callbacks()
        held = [*own] if isinstance(own, Sequence) else [own]
        problems += callback_problems(held, f"{type(module).__name__}.configure_callbacks()")
    if federation.strategy == "fsdp" and federation.algorithm.folds:
        problems.append(
            "Expected `federation.strategy` not to be 'fsdp' with `algorithm:"
            f" {type(federation.algorithm).__name__}`, which adds to frozen weights. Use 'ddp', which keeps them whole."
        )
    if federation.batch_clients > 1 and isinstance(module, pl.LightningModule):
        problems += _together_problems(federation, module)
    problems += federation.algorithm.budget.problems()
    if problems:
        raise ConfigError(problems)


def _together_problems(federation: "Federation", module: pl.LightningModule) -> list[str]:
    """Why clients can never be trained together with these settings and this module."""
    from lit_fed.modules.base import ClientModule

    own = module.configure_callbacks()
    hooks = [name for name in MODULE_HOOKS if is_overridden(name, module)]
    reasons = {
        f"`parallel: {federation.parallel}`, which trains one client at a time": federation.parallel != "clients",
        f"`precision: {federation.precision}`, whose loss scale is one for all": federation.precision == "16-mixed",
        "Lightning callbacks, which see one client's training": bool(federation.lightning_callbacks or own),
        f"a `training_step` of {type(module).__name__}'s own, in which clients cannot be told apart": (
            type(module).training_step is not ClientModule.training_step or not module.automatic_optimization
        ),
        f"hooks of {type(module).__name__} that see one client's training ({', '.join(hooks)})": bool(hooks),
    }
    return [
        f"Expected `federation.batch_clients` to be 1 with {reason}, but got {federation.batch_clients}. Set it to 1."
        for reason, holds in reasons.items()
        if holds
    ]


def _class_of(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
