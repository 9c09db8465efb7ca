"""What a LightningModule and Lightning callbacks see as the trainer during a client's turn."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.fabric import Fabric
from lightning.fabric.wrappers import _FabricOptimizer
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor

from lit_fed.core.types import Client
from lit_fed.engine.log_recorder import LogRecorder
from lit_fed.engine.within import Cluster


class LocalTrainer:
    """Stands where a ``Trainer`` would stand (``self.trainer``, ``self.fabric`` of the module) for one turn.

    It knows what local training knows: epoch, step, optimizers, schedulers, loggers, whose turn it is (`client`,
    `round`). Whatever else is asked for is looked up in Fabric; what neither has is an error that says so.
    """

    def __init__(
        self,
        fabric: Fabric,
        module: pl.LightningModule,
        recorder: LogRecorder,
        callbacks: Sequence[pl.Callback] = (),
        client: Client | None = None,
        round: int = 0,
        cluster: Cluster | None = None,
    ) -> None:
        self.fabric = fabric
        self.lightning_module = self.model = module
        self.recorder = recorder
        self.callbacks = list(callbacks)
        self.client, self.round = client, round
        self.cluster = cluster
        self.optimizers: list[_FabricOptimizer] = []
        self.lr_scheduler_configs: list[LRSchedulerConfig] = []
        self.current_epoch = self.global_step = 0
        self.max_epochs: int | None = None
        self.max_steps = -1
        self.num_training_batches: int | float = 0
        self.estimated_stepping_batches: int | float = 0
        self.accumulate_grad_batches = 1
        self.gradient_clip_val: float | None = None
        self.gradient_clip_algorithm: str | None = None
        self.train_dataloader: Any = None
        self.datamodule: Any = None
        self.training = False
        self.validating = self.testing = self.predicting = self.sanity_checking = self.fast_dev_run = False
        self.should_stop = False

    @property
    def callback_metrics(self) -> dict[str, Any]:
        """The latest value of everything logged in this turn."""
        return self.recorder.latest

    logged_metrics = progress_bar_metrics = callback_metrics

    @property
    def is_last_batch(self) -> bool:
        """Not known while batches are drawn one by one."""
        return False

    def backward(self, tensor: Tensor, *args: Any, **kwargs: Any) -> None:
        """Backward with the precision's scaler; what ``self.manual_backward`` calls."""
        self.fabric.backward(self.cluster.weigh(tensor) if self.cluster else tensor, *args, **kwargs)

    def clip_gradients(self, module: Any, optimizer: Any, **kwargs: Any) -> Any:
        """Clip the gradients of one optimizer; what ``self.clip_gradients`` calls."""
        if self.cluster:
            self.cluster.sum_gradients(optimizer)
        return self.fabric.clip_gradients(module, optimizer, **kwargs)

    def log_dict(self, metrics: Any, *args: Any, **kwargs: Any) -> None:
        """Values logged past ``LightningModule.log`` end in the same place."""
        self.recorder.log_dict(metrics)

    def __getattr__(self, name: str) -> Any:
        """Fall back to Fabric."""
        if name.startswith("__") or name == "fabric":
            raise AttributeError(name)
        try:
            return getattr(self.fabric, name)
        except AttributeError:
            raise AttributeError(
                f"`trainer.{name}` is not available while a client trains in a federation: there is no Trainer, only"
                f" Fabric. Available are Fabric's attributes and {sorted(k for k in vars(self) if k != 'recorder')}."
            ) from None

    @contextmanager
    def attached(self) -> Iterator["LocalTrainer"]:
        """Be the module's trainer within the scope, and leave no trace."""
        module = self.lightning_module
        before = module._trainer, module._fabric, module._fabric_optimizers
        module._trainer, module._fabric = self, self  # type: ignore[assignment]
        module.log, module.log_dict = self.recorder.log, self.recorder.log_dict  # type: ignore[method-assign]
        try:
            yield self
        finally:
            module._trainer, module._fabric, module._fabric_optimizers = before
            del module.log, module.log_dict


class BatchMover:
    """Moves batches to the device as the module wants them moved: through its own transfer hooks, if it has any."""

    HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")

    def __init__(self, fabric: Fabric, module: pl.LightningModule) -> None:
        self.fabric, self.module = fabric, module
        self._own = any(is_overridden(name, module) for name in self.HOOKS)

    def __call__(self, batch: Any) -> Any:
        """The batch on the device."""
        if not self._own:
            return self.fabric.to_device(batch)
        batch = self.module.on_before_batch_transfer(batch, 0)
        batch = self.module.transfer_batch_to_device(batch, self.fabric.device, 0)
        return self.module.on_after_batch_transfer(batch, 0)
