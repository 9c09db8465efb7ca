"""Local training: a LightningModule's own steps, hooks and optimizers, for a number of steps or epochs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_fed.core.errors import ConfigError
from lit_fed.core.types import Client, FitResult
from lit_fed.engine.joint import Joint, JointLoader
from lit_fed.engine.local_trainer import BatchMover, LocalTrainer
from lit_fed.engine.log_recorder import LogRecorder, merge
from lit_fed.engine.optimizers import check_separable, clip_norms_apart, set_up_optimizers, step_schedulers
from lit_fed.engine.within import Cluster


@dataclass(frozen=True)
class LoopSettings:
    """How local steps are made; the names are those of Lightning's Trainer."""

    gradient_clip_val: float | None = None
    gradient_clip_algorithm: Literal["norm", "value"] = "norm"
    accumulate_grad_batches: int = 1
    fuse_optimizers: bool = False
    """Whether Adam and AdamW step in one kernel on a CPU, where a module leaves it open."""


class LocalLoop:
    """Trains the resident module for one client at a time.

    Every forward runs under ``fabric.autocast()``: a step method called on a Fabric wrapper would run in float32 on one
    device and in the chosen precision on two.

    Args:
        fabric: The launched Fabric.
        module: The resident module, on its device.
        settings: Clipping, accumulation, and how optimizers step.
        callbacks: Lightning callbacks; they see a `LocalTrainer`.
        cluster: The processes that share one client (``parallel: within``), if any.
    """

    def __init__(
        self,
        fabric: Fabric,
        module: pl.LightningModule,
        settings: LoopSettings,
        callbacks: Sequence[pl.Callback] = (),
        cluster: Cluster | None = None,
    ) -> None:
        self.fabric, self.module, self.settings, self.cluster = fabric, module, settings, cluster
        own = module.configure_callbacks()
        self.callbacks = [*callbacks, *(own if isinstance(own, Sequence) else [own])]
        self._takes_batch_idx = is_param_in_hook_signature(module.training_step, "batch_idx", explicit=True)
        self._own_hooks = {name for name in MODULE_HOOKS if is_overridden(name, module)}
        self.mover = BatchMover(fabric, module)
        self._children = tuple(module.modules())
        self._count_targets = getattr(module, "count_targets", None)

    def run(
        self,
        loader: DataLoader[Any] | JointLoader,
        client: Client,
        round: int,
        *,
        steps: int | None,
        epochs: int | None,
        objective: Callable[[Any, Callable[[], Tensor]], Tensor] | None = None,
        rates: Mapping[nn.Parameter, float] | None = None,
        groups: int = 1,
    ) -> FitResult:
        """Train until `steps` optimizer steps or `epochs` passes over `loader` are made.

        Under manual optimization a step is one call of ``training_step``.

        Args:
            loader: Training batches, reshuffled whenever it is iterated anew.
            client: Whose turn it is.
            round: The round, from 0.
            steps: Optimizer steps, or
            epochs: passes over the loader; exactly one of the two.
            objective: ``(batch, own_loss) -> loss`` in place of the module's own loss.
            rates: Learning rates of some parameters in place of the optimizer's.
            groups: Clients that are trained side by side: parameters are (groups, ...), batches `Joint`.
        """
        module, recorder = self.module, LogRecorder()
        trainer = LocalTrainer(self.fabric, module, recorder, self.callbacks, client, round, self.cluster)
        num_batches = len(loader)
        per_epoch = -(-num_batches // self.settings.accumulate_grad_batches)
        trainer.num_training_batches, trainer.train_dataloader = num_batches, loader
        trainer.max_epochs, trainer.max_steps = epochs, -1 if steps is None else steps
        trainer.estimated_stepping_batches = steps if steps is not None else per_epoch * (epochs or 0)
        trainer.accumulate_grad_batches = self.settings.accumulate_grad_batches
        trainer.gradient_clip_val = self.settings.gradient_clip_val
        trainer.gradient_clip_algorithm = self.settings.gradient_clip_algorithm
        trainer.training = True
        self._fresh_scaler()
        turn = _Turn(self, trainer, recorder, objective, groups)
        was_training = module.training
        self._set_mode(True)
        with trainer.attached():
            set_up_optimizers(module, trainer, rates, self.settings.fuse_optimizers)
            if groups > 1:
                check_separable(trainer)
            self.call("on_fit_start", trainer)
            self.call("on_train_start", trainer)
            while not turn.done(steps, epochs):
                turn.epoch(loader, steps)
            self.call("on_train_end", trainer)
            self.call("on_fit_end", trainer)
            for optimizer in trainer.optimizers:
                optimizer.zero_grad(set_to_none=True)
            result = turn.result(client.num_examples)
        self._set_mode(was_training)
        return result

    def _set_mode(self, training: bool) -> None:
        """``module.train(training)``, unless it would change nothing: it visits every module, twice a turn."""
        if any(child.training is not training for child in self._children):
            self.module.train(training)

    def call(self, hook: str, trainer: LocalTrainer, *args: Any) -> Any:
        """Call a hook on the Lightning callbacks and on the module, in Lightning's order."""
        result = None
        for callback in self.callbacks:
            getattr(callback, hook)(trainer, self.module, *args)
        if hook in self._own_hooks:
            result = getattr(self.module, hook)(*args)
        return result

    def open(self, drawn: Any) -> tuple[Any, int | None]:
        """A drawn batch on the device, or this process's part of it; how many of its examples count (all: `None`)."""
        if isinstance(drawn, Joint):
            return drawn, drawn.num_rows
        if self.cluster is None:
            return self.mover(drawn), None
        local, num_local = self.cluster.open(drawn)
        batch = self.mover(local)
        if self._count_targets is not None:
            self.cluster.share_by(self._count_targets(batch))
        return batch, num_local

    def own_loss(self, batch: Any, batch_idx: int) -> Any:
        """What the module's ``training_step`` returns."""
        return (
            self.module.training_step(batch, batch_idx) if self._takes_batch_idx else self.module.training_step(batch)
        )

    def _fresh_scaler(self) -> None:
        """Loss scaling starts anew, or a client's overflow would change the next client's steps."""
        precision = self.fabric._precision
        if isinstance(precision, MixedPrecision) and precision.scaler is not None:
            precision.scaler = torch.amp.GradScaler(device=precision.device)


class _Turn:
    """The moving parts of one run of the loop."""

    def __init__(
        self,
        loop: LocalLoop,
        trainer: LocalTrainer,
        recorder: LogRecorder,
        objective: Callable[[Any, Callable[[], Tensor]], Tensor] | None,
        groups: int,
    ) -> None:
        self.loop, self.trainer, self.recorder, self.objective = loop, trainer, recorder, objective
        self.groups = groups
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=loop.fabric.device)
        self.examples_seen = 0
        self.num_steps = self.num_local = 0

    def done(self, steps: int | None, epochs: int | None) -> bool:
        if self.trainer.should_stop:
            return True
        return self.num_steps >= steps if steps is not None else self.trainer.current_epoch >= (epochs or 0)

    def epoch(self, loader: Iterable[Any], steps: int | None) -> None:
        loop, trainer = self.loop, self.trainer
        before = self.num_steps
        loop.call("on_train_epoch_start", trainer)
        group = loop.settings.accumulate_grad_batches
        num_batches = int(trainer.num_training_batches)
        for batch_idx, drawn in enumerate(loader):
            batch, num_local = loop.open(drawn)
            self.recorder.batch, self.recorder.counts = batch, num_local != 0
            if loop.call("on_train_batch_start", trainer, batch, batch_idx) == -1:
                break
            ends_group = (batch_idx + 1) % group == 0 or batch_idx + 1 == num_batches
            self.count_batch(num_local)
            outputs = self.batch(batch, batch_idx, batch_idx % group == 0, ends_group)
            loop.call("on_train_batch_end", trainer, outputs, batch, batch_idx)
            if trainer.should_stop or (steps is not None and self.num_steps >= steps):
                break
        loop.call("on_train_epoch_end", trainer)
        trainer.current_epoch += 1
        if loop.module.automatic_optimization:
            step_schedulers(loop.module, trainer, "epoch", trainer.current_epoch)
        if self.num_steps == before:
            raise ConfigError(
                f"Client {trainer.client.id if trainer.client else '?'!r} made no step in an epoch of {num_batches} "
                "batches. Lower `data.batch_size`, or let its loader keep the last, smaller batch."
            )

    def batch(self, batch: Any, batch_idx: int, starts_group: bool, ends_group: bool) -> Any:
        """One batch: forward and backward, and a step if it ends its accumulation group."""
        loop, trainer = self.loop, self.trainer
        if not loop.module.automatic_optimization:
            with loop.fabric.autocast():
                outputs = loop.own_loss(batch, batch_idx)
            self.count_loss(outputs)
            self.num_steps += 1
            trainer.global_step = self.num_steps
            return outputs
        (optimizer,) = trainer.optimizers
        outputs = None

        def closure() -> Tensor | None:
            nonlocal outputs
            with loop.fabric.autocast():
                outputs = (
                    self.objective(batch, lambda: _loss_of(loop.own_loss(batch, batch_idx)))
                    if self.objective
                    else loop.own_loss(batch, batch_idx)
                )
            loss = self.count_loss(outputs)
            if loss is None and loop.cluster:
                raise ConfigError(
                    f"Expected `training_step` of {type(loop.module).__name__} to return a loss for every batch with"
                    " `federation.parallel: within`, whose processes make each step together, but got None."
                )
            if loss is None:  # a module may skip a batch
                return None
            group = loop.settings.accumulate_grad_batches
            loss = loss if group == 1 else loss / group
            loop.call("on_before_backward", trainer, loss)
            trainer.backward(loss)
            loop.call("on_after_backward", trainer)
            if ends_group:
                if loop.cluster:
                    loop.cluster.sum_gradients(optimizer)
                loop.call("on_before_optimizer_step", trainer, optimizer)
                self.clip(optimizer)
            return loss

        if starts_group:
            loop.call("on_before_zero_grad", trainer, optimizer)
            optimizer.zero_grad()
        if not ends_group:
            closure()
            return outputs
        if "optimizer_step" in loop._own_hooks:
            own: Any = loop.module
            own.optimizer_step(trainer.current_epoch, batch_idx, optimizer, closure)
        elif closure() is not None:
            optimizer.step()
        self.num_steps += 1
        trainer.global_step = self.num_steps
        step_schedulers(loop.module, trainer, "step", self.num_steps)
        return outputs

    def clip(self, optimizer: Any) -> None:
        """Clip as the settings say, through the module's own hook if it has one."""
        settings, module = self.loop.settings, self.loop.module
        value, algorithm = settings.gradient_clip_val, settings.gradient_clip_algorithm
        if "configure_gradient_clipping" in self.loop._own_hooks:
            module.configure_gradient_clipping(optimizer, value, algorithm)
        elif value is not None and algorithm == "norm" and self.groups > 1:
            clip_norms_apart(optimizer, value)
        elif value is not None and algorithm == "norm":
            # Non-finite gradients are for the scaler, or for the check of the update, to find.
            self.loop.fabric.clip_gradients(module, optimizer, max_norm=value, error_if_nonfinite=False)
        elif value is not None:
            self.loop.fabric.clip_gradients(module, optimizer, clip_val=value)

    def count_batch(self, num_local: int | None) -> None:
        """How many examples the next loss is a mean over."""
        self.num_local = extract_batch_size(self.recorder.batch) if num_local is None else num_local

    def count_loss(self, outputs: Any) -> Tensor | None:
        """Add to the mean loss, on the device."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self.loss_sum += loss.detach().double() * self.num_local
            self.examples_seen += self.num_local
        return loss

    def result(self, num_examples: int) -> FitResult:
        """The numbers of the turn; the only place where the device is waited for."""
        loss_sum, seen, logged = self.loss_sum, float(self.examples_seen), self.recorder.compute(self.examples_seen)
        if self.loop.cluster:
            loss_sum, seen = self.loop.cluster.total(loss_sum, seen)
            logged = merge(self.loop.cluster.all_say(logged))
        mean_loss = float(loss_sum) / seen if seen else 0.0
        metrics = {f"train/{name}": number.value for name, number in logged.items() if name != "loss"}
        return FitResult(num_examples, self.num_steps, mean_loss, metrics)


def _loss_of(outputs: Any) -> Tensor:
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    if not isinstance(loss, Tensor):
        raise ConfigError(f"Expected `training_step` to return a loss for this algorithm, but got {type(outputs)}.")
    return loss


MODULE_HOOKS = (  # of a module, that are called while it trains
    "on_fit_start",
    "on_fit_end",
    "on_train_start",
    "on_train_end",
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "configure_gradient_clipping",
    "optimizer_step",
)
