"""A module's own optimizers and schedulers, set up afresh for every turn."""

from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import (
    _configure_optimizers,
    _configure_schedulers_automatic_opt,
    _configure_schedulers_manual_opt,
)
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_fed.adapters.layout import attached_gate, attached_parts, exit_heads
from lit_fed.core.errors import ConfigError
from lit_fed.engine.local_trainer import LocalTrainer


def set_up_optimizers(
    module: pl.LightningModule,
    trainer: LocalTrainer,
    rates: Mapping[nn.Parameter, float] | None = None,
    fuse: bool = False,
) -> None:
    """Call ``configure_optimizers`` and hand the result to the module and its trainer, as a Trainer would.

    Lightning's own parsing is used (that is why lightning is bounded from above), so every form that a Trainer
    accepts is accepted: one optimizer, several, with schedulers, as dictionaries.

    Args:
        module: The module.
        trainer: Its trainer for this turn.
        rates: Learning rates of some parameters in place of the optimizer's.
        fuse: Whether optimizers that leave it open step in one kernel; see `_fuse`.
    """
    configured: Any = module.configure_optimizers()
    optimizers, schedulers, monitor = _configure_optimizers(configured) if configured is not None else ([], [], None)
    if module.automatic_optimization and len(optimizers) != 1:
        raise ConfigError(
            f"Expected `configure_optimizers` to return one optimizer under automatic optimization, but got "
            f"{len(optimizers)}. Set `self.automatic_optimization = False` to step several yourself."
        )
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    gate = attached_gate(module)
    attached = {"heads of the exits": exit_heads(module).parameters(), "gate": gate.parameters() if gate else ()}
    attached |= {name.replace("_", " "): part.parameters() for name, part in attached_parts(module).items()}
    lacking = [what for what, ps in attached.items() if any(p.requires_grad and id(p) not in held for p in ps)]
    if lacking:
        raise ConfigError(
            f"Expected `configure_optimizers` of {type(module).__name__} to train the {lacking[0]}, but it does "
            "not. Give the optimizer `[p for p in self.parameters() if p.requires_grad]`."
        )
    if fuse:
        for optimizer in optimizers:
            _fuse(optimizer)
    if rates:
        for optimizer in optimizers:
            _use_rates(optimizer, rates)
    automatic = module.automatic_optimization
    configs: list[LRSchedulerConfig] = (
        _configure_schedulers_automatic_opt(schedulers, monitor)
        if automatic
        else _configure_schedulers_manual_opt(schedulers)
    )
    wrapped = trainer.fabric.setup_optimizers(*optimizers)
    trainer.optimizers = list(wrapped) if isinstance(wrapped, tuple) else [wrapped]
    if getattr(trainer.fabric._precision, "scaler", None) is not None:
        for optimizer in trainer.optimizers:
            _call_closure_before_step(optimizer)
    if trainer.cluster:
        for optimizer in trainer.optimizers:
            trainer.cluster.sums_before_step(optimizer)
    trainer.lr_scheduler_configs = configs
    module._fabric_optimizers = trainer.optimizers  # what `self.optimizers()` returns


def step_schedulers(module: pl.LightningModule, trainer: LocalTrainer, interval: str, count: int) -> None:
    """Step the schedulers that are due after `count` steps or epochs (automatic optimization only)."""
    for config in trainer.lr_scheduler_configs:
        if config.interval != interval or count % config.frequency:
            continue
        metric = None
        if config.reduce_on_plateau:
            if config.monitor not in trainer.callback_metrics:
                raise ConfigError(
                    f"Expected `monitor` of a ReduceLROnPlateau scheduler to be logged during training, but got "
                    f"{config.monitor!r}. Logged are {sorted(trainer.callback_metrics)}."
                )
            metric = trainer.callback_metrics[config.monitor]
        module.lr_scheduler_step(config.scheduler, metric)


_ELEMENT_BY_ELEMENT = frozenset({
    "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD",
})  # fmt: skip


def check_separable(trainer: LocalTrainer) -> None:
    """Raise `ConfigError` unless to train parameters side by side is to train each alone.

    An optimizer of PyTorch's own that works element by element does; a schedule does that counts steps.
    """
    (optimizer,) = trainer.optimizers
    kind = type(getattr(optimizer, "optimizer", optimizer))
    if kind.__name__ not in _ELEMENT_BY_ELEMENT or kind.__module__.partition(".")[0] != "torch":
        raise ConfigError(
            f"{kind.__name__} is none of PyTorch's optimizers that work element by element"
            f" ({', '.join(sorted(_ELEMENT_BY_ELEMENT))})"
        )
    uneven = trainer.max_epochs is None
    if any(
        config.reduce_on_plateau or (config.interval == "epoch" and uneven) for config in trainer.lr_scheduler_configs
    ):
        raise ConfigError("their learning rates follow what they log, or epochs of unequal length")


def clip_norms_apart(optimizer: Any, max_norm: float) -> None:
    """Clip gradients (K, ...) that lie side by side, each of the K by its own norm, as ``clip_grad_norm_`` does."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.to(gradient.dtype).view(-1, *[1] * (gradient.ndim - 1)))


def _call_closure_before_step(optimizer: Any) -> None:
    """As a Trainer does with a loss scaler, which takes no closures: call it, and step unless it made no loss."""
    step = optimizer.step

    def step_after(closure: Callable[[], Any] | None = None) -> Any:
        return None if closure is not None and closure() is None else step()

    optimizer.step = step_after


def _fuse(optimizer: Optimizer) -> None:
    """Let Adam and AdamW on a CPU step all tensors in one call, unless the module has said how they step.

    PyTorch's default there is a dozen operations for each tensor, and LoRA has two small tensors a layer.
    """
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        return
    for group in optimizer.param_groups:
        undecided = group["fused"] is None and group["foreach"] is None
        special = group["differentiable"] or group["capturable"] or isinstance(group["lr"], Tensor)
        if undecided and not special and all(p.device.type == "cpu" and p.is_floating_point() for p in group["params"]):
            group["fused"] = True


def _use_rates(optimizer: Optimizer, rates: Mapping[nn.Parameter, float]) -> None:
    """Give some parameters of an optimizer learning rates of their own, scaled as a scheduler scales the others.

    Only while it steps they are groups of their own: schedulers have counted the groups before.
    """
    groups = optimizer.param_groups
    first = [float(group.get("initial_lr", group["lr"])) for group in groups]

    def split(*_: Any) -> None:
        apart = []
        for group, began in zip(groups, first, strict=True):
            own = [p for p in group["params"] if p in rates]
            scale = float(group["lr"]) / began if began else 1.0
            apart += [{**group, "params": [p]} | {"lr": rates[p] * scale} for p in own]
            apart.append({**group, "params": [p for p in group["params"] if p not in rates]})
        optimizer.param_groups = apart

    def join(*_: Any) -> None:
        optimizer.param_groups = groups

    optimizer.register_step_pre_hook(split)
    optimizer.register_step_post_hook(join)
