"""From a module and data to everything a run needs; every problem is found here, before work starts."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeGuard

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch import Tensor

from lit_fed.adapters.exits import attach_exits
from lit_fed.adapters.gate import attach_gate, width_of
from lit_fed.adapters.parts import attach_parts, parts_of
from lit_fed.adapters.state import AdapterView
from lit_fed.algorithms.base import GLOBAL, Algorithm, Where
from lit_fed.core.errors import ConfigError
from lit_fed.core.names import exit_of, is_head
from lit_fed.core.sampling import Sampling, cohort_size, per_domain_problems
from lit_fed.core.seeding import isolated_rng
from lit_fed.core.tree import digest
from lit_fed.core.types import AdapterState, Client, ClientId, ModelInfo, Setting
from lit_fed.data.federated import FederatedDataModule
from lit_fed.engine.local_loop import LocalLoop, LoopSettings
from lit_fed.engine.local_trainer import LocalTrainer
from lit_fed.engine.log_recorder import LogRecorder
from lit_fed.engine.memory import training_bytes
from lit_fed.engine.precision import Precision, cast_frozen
from lit_fed.engine.within import shard_frozen

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class Prepared:
    """A module and data, checked and ready."""

    module: pl.LightningModule
    data: FederatedDataModule
    view: AdapterView
    initial: dict[str, dict[str, Tensor]]
    """The initial value of every slot."""
    setting: Setting
    """The model, and who trains: the registered clients, or the one that pools them."""
    members: dict[ClientId, Sequence[ClientId]]
    """Pooled client -> the registered clients whose data it holds."""

    @property
    def blocks_of(self) -> int:
        """Blocks of the full model, at least 1 (what expected cost is counted in)."""
        return max(self.setting.model.num_blocks, 1)


def prepare(
    module: pl.LightningModule,
    data: FederatedDataModule,
    algorithm: Algorithm,
    fabric: Fabric,
    *,
    cohort: int | float,
    sampling: Sampling,
    min_updates: int,
    precision: Precision,
    kernels: Callable[[AdapterView], AbstractContextManager[None]],
    loop: LoopSettings,
    shard: bool,
    offload: bool,
    seed: int,
    dry_run: bool,
    rounds: int,
) -> Prepared:
    """Build the model, split the data, add the algorithm's slots, and check that all fits.

    Raises:
        ConfigError: With every problem found.
    """
    data.setup_clients(dry_run=dry_run)  # data first, as in a Trainer: what is missing there is told at once
    build(module, fabric, seed, dry_run)
    encode = getattr(module, "encode", None)
    data.setup_clients(encode if callable(encode) and not dry_run else None, dry_run)
    with isolated_rng(seed, "slots"), torch.device("meta") if dry_run else nullcontext():
        for slot in algorithm.slots:
            if slot != GLOBAL:
                give_slot(module, slot)
    view = AdapterView(module)
    view.fold({})  # what a federation before has left in the frozen weights
    # What some turn trains is no frozen weight, though it is another slot's: neither to be cast nor to be sharded.
    others: dict[str, Where | None] = dict.fromkeys(slot for slot in algorithm.slots if slot != GLOBAL)
    view.train_only(GLOBAL, None, others)
    wrong_cohort = _cohort_problems(len(data.clients), cohort, min_updates)
    if sampling == "per_domain" and not wrong_cohort:
        wrong_cohort = per_domain_problems(data.clients, cohort)
    size = len(data.clients) if wrong_cohort else cohort_size(len(data.clients), cohort)
    clients, members = _clients(data, algorithm, size)
    problems = [
        *_module_problems(module, algorithm, view),
        *wrong_cohort,
        *(view.fold_problems() if algorithm.folds else ()),
        *(_validation_problems(data, algorithm) if algorithm.needs_validation else ()),
        *_target_problems(module, data),
        *_offload_problems(offload, view),
    ]
    model = _describe(module, view)
    if algorithm.measures_memory and view.blocks is not None:
        if problems:  # with these there may be nothing to measure
            raise ConfigError(problems)
        if not dry_run:
            place(module, fabric, precision)
            largest = max(data.clients, key=lambda client: client.num_examples)
            view.train_only(GLOBAL, None)
            with kernels(view):
                measured = training_bytes(LocalLoop(fabric, module, loop), view, data, largest, seed)
            view.train_only(GLOBAL, None, others)
            model = replace(model, training_bytes=fabric.broadcast(measured))
    setting = Setting(model, clients, 1 if algorithm.pools_clients else size, seed, rounds)
    problems += algorithm.problems(setting)
    if problems:
        raise ConfigError(problems)
    exits, gate, parts = algorithm.exits(setting), algorithm.gate(setting), algorithm.parts(setting)
    if exits or gate is not None or parts:
        attach_exits(module, exits)
        with isolated_rng(seed, "gate"):
            attach_gate(module, gate)
        with isolated_rng(seed, "parts"):
            attach_parts(module, parts)
        view = AdapterView(module)
        view.train_only(GLOBAL, None, others)
        setting = replace(setting, model=replace(_describe(module, view), training_bytes=model.training_bytes))
    if not dry_run:
        place(module, fabric, precision)
        if shard and view.blocks is not None:
            shard_frozen(view.blocks.blocks, fabric.device)
    view.train_only(GLOBAL, None)
    initial: dict[str, dict[str, Tensor]] = {
        slot: {**view.parameters(slot)} if dry_run else view.read(slot) for slot in algorithm.slots
    }
    view.snapshot_buffers()
    return Prepared(module, data, view, initial, setting, members)


def build(module: pl.LightningModule, fabric: Fabric, seed: int, dry_run: bool = False) -> None:
    """Have the module build its model, with the values that the seed gives it, as it was before any federation."""
    trainer = LocalTrainer(fabric, module, LogRecorder())
    with isolated_rng(seed, "init"), torch.device("meta") if dry_run else nullcontext(), trainer.attached():
        module.prepare_data()
        module.setup("fit")
        module.configure_model()
    attach_exits(module, ())  # those of a federation before
    attach_gate(module, None)
    attach_parts(module, {})


def attach_as_in(module: pl.LightningModule, adapter: AdapterState, seed: int) -> None:
    """Add to a module what algorithms have added to the one whose adapter this is: exits, a gate, parts."""
    attach_exits(module, {depth for name in adapter if (depth := exit_of(name)) is not None})
    with isolated_rng(seed, "gate"):
        attach_gate(module, width_of(adapter))
    with isolated_rng(seed, "parts"):
        attach_parts(module, parts_of(adapter))


def give_slot(module: pl.LightningModule, slot: str) -> None:
    """A slot with the values of ``"global"``, also if a federation before has left one."""
    view = AdapterView(module)
    if slot in view.slots:
        own = view.tensors(slot)
        view.write({name: tensor for name, tensor in view.tensors(GLOBAL).items() if name in own}, slot)
    else:
        view.add_slot(slot)


def place(module: pl.LightningModule, fabric: Fabric, precision: Precision) -> None:
    """On its device, with the same values in every process, in the chosen precision."""
    fabric.to_device(module)
    if fabric.world_size > 1:
        _same_everywhere(module)
    cast_frozen(module, precision)


def _describe(module: pl.LightningModule, view: AdapterView) -> ModelInfo:
    trained = view.parameters(GLOBAL)
    every_slot = {id(p) for slot in view.slots for p in view.parameters(slot).values()}
    frozen = sum(p.numel() for p in module.parameters() if id(p) not in every_slot)
    trainable = sum(p.numel() for p in trained.values())
    return ModelInfo(
        num_blocks=len(view.blocks) if view.blocks is not None else 0,
        has_head=any(is_head(name) for name in trained),
        total_parameters=frozen + trainable,
        trainable_parameters=trainable,
        block_bytes=view.blocks.block_bytes() if view.blocks is not None else (),
        rank=view.rank,
    )


def _clients(
    data: FederatedDataModule, algorithm: Algorithm, cohort_size: int
) -> tuple[tuple[Client, ...], dict[ClientId, Sequence[ClientId]]]:
    if not algorithm.pools_clients:
        return tuple(data.clients), {}
    ids = [client.id for client in data.clients]
    total = sum(client.num_examples for client in data.clients)
    return (Client("all", total, stands_for=cohort_size),), {"all": ids}


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


def _same_everywhere(module: torch.nn.Module) -> None:
    """What the first process built is what every process uses, however it came by its random numbers."""
    for tensor in [*module.parameters(), *module.buffers()]:
        dist.broadcast(tensor.data, src=0)


def identity(
    prepared: Prepared, algorithm: Algorithm, settings: Mapping[str, Any], config: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What must be the same for two runs to give the same result, as JSON values."""
    hparams = {k: v for k, v in prepared.module.hparams.items() if _is_plain(v)}
    known = {"class": type(prepared.module).__qualname__, **hparams}
    options = {k: asdict(v) if _is_options(v) else v for k, v in vars(algorithm).items()}
    own = {k: v for k, v in options.items() if _is_plain(v)}
    info = prepared.setting.model
    held = [[client.id, client.num_examples] for client in prepared.setting.clients]
    return {
        "seed_everything": settings["seed"],
        "federation": {k: v for k, v in settings.items() if k != "seed"},
        "algorithm": {"class": type(algorithm).__qualname__, "budget": vars(algorithm.budget), **own},
        "model": config["model"] if config and "model" in config else known,
        "data": config["data"] if config and "data" in config else {},
        "clients": {"number": len(held), "digest": digest({"examples": held})},
        "parameters": {"total": info.total_parameters, "trainable": info.trainable_parameters},
    }


def _is_options(value: Any) -> TypeGuard["DataclassInstance"]:
    return is_dataclass(value) and not isinstance(value, type)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, bool | int | float | str)
