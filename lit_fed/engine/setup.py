"""From a module and data to everything a run needs; every problem is found here, before work starts.

The module is built in `lit_fed.engine.build`; what is wrong is said in `lit_fed.engine.setup_checks`.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import lightning.pytorch as pl
import torch
from lightning.fabric import Fabric
from torch import Tensor

from lit_fed.adapters.exits import attach_exits
from lit_fed.adapters.gate import attach_gate
from lit_fed.adapters.parts import attach_parts
from lit_fed.adapters.state import AdapterView
from lit_fed.algorithms.base import GLOBAL, Algorithm, Where
from lit_fed.core.errors import ConfigError
from lit_fed.core.names import is_head
from lit_fed.core.sampling import Sampling, cohort_size
from lit_fed.core.seeding import isolated_rng
from lit_fed.core.types import Client, ClientId, ModelInfo, Setting
from lit_fed.data.federated import FederatedDataModule
from lit_fed.engine.build import build, give_slot, place
from lit_fed.engine.local_loop import LocalLoop, LoopSettings
from lit_fed.engine.memory import training_bytes
from lit_fed.engine.precision import Precision
from lit_fed.engine.setup_checks import cohort_problems, setup_problems
from lit_fed.engine.within import shard_frozen


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
    wrong_cohort = cohort_problems(data, cohort, sampling, min_updates)
    size = len(data.clients) if wrong_cohort else cohort_size(len(data.clients), cohort)
    clients, members = _clients(data, algorithm, size)
    problems = [*wrong_cohort, *setup_problems(module, data, algorithm, view, offload)]
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
