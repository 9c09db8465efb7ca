"""The module of a run, built: its model, slots, what algorithms add to it, on its device."""

from contextlib import nullcontext

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric import Fabric

from lit_fed.adapters.exits import attach_exits
from lit_fed.adapters.gate import attach_gate, width_of
from lit_fed.adapters.parts import attach_parts, parts_of
from lit_fed.adapters.state import AdapterView
from lit_fed.algorithms.base import GLOBAL
from lit_fed.core.names import exit_of
from lit_fed.core.seeding import isolated_rng
from lit_fed.core.types import AdapterState
from lit_fed.engine.local_trainer import LocalTrainer
from lit_fed.engine.log_recorder import LogRecorder
from lit_fed.engine.precision import Precision, cast_frozen


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


def _same_everywhere(module: torch.nn.Module) -> None:
    """What the first process built is what every process uses, however it came by its random numbers."""
    for tensor in [*module.parameters(), *module.buffers()]:
        dist.broadcast(tensor.data, src=0)
