"""A client's module: a frozen foundation model, LoRA on it, and what a federation asks of a task.

Shapes: B rows of a batch, D width of the features, C classes; ``...`` is nothing for a classifier, and the T positions
of a sequence for a language model. A target of `IGNORED` counts for nothing.
"""

import copy
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from peft import LoraConfig, PeftModel
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import Metric

from lit_fed.adapters.beside import names_beside
from lit_fed.adapters.lora import add_lora
from lit_fed.core.errors import ConfigError
from lit_fed.metrics.mean import Mean
from lit_fed.modules.foundation import Loaded, Source
from lit_fed.modules.heads import attention_linears, trained_in_full
from lit_fed.modules.labels import IGNORED

__all__ = ["Batch", "ClientModule", "Measured"]

Batch = Mapping[str, Tensor]
Measured = dict[str, tuple[Tensor, Tensor]]
"""Metric to values, of any shape, and their weights."""

# jsonargparse fills in the defaults of `loftq_config`, upon which PEFT says that it will not use them.
warnings.filterwarnings("ignore", message="`loftq_config` specified but will be ignored")


class ClientModule(LightningModule):
    """A frozen foundation model with LoRA; subclasses say which, and how raw rows become tensors.

    The constructor only takes notes. `configure_model` builds the model, so that it happens where Lightning or the
    federation wants it: on a device, on the meta device, with seeded generators. What is trained is LoRA in slot
    ``"global"`` and the head.

    Args:
        model: A hub id, or a local folder in Hugging Face's layout (which is never looked up on the network).
        config: An architecture, ``{"model_type": ..., ...}``. Without `model` its weights are random. With `model` it
            stands in for the configuration that comes with the weights; without ``model_type`` it changes settings of
            that configuration, as ``{"hidden_dropout_prob": 0.0}`` does.
        quantization: Settings of Hugging Face's ``BitsAndBytesConfig``, ``{"load_in_4bit": true, ...}``: the frozen
            model is loaded in 4 or 8 bits. It takes a GPU and the package `bitsandbytes`; a dry run takes neither.
        lora: PEFT's settings. Without ``target_modules``, all linear layers of the attention. `None`: the head only.
        optimizer: From parameters to an optimizer; a class path in a configuration file.
        lr_scheduler: From an optimizer to a scheduler, stepped after every optimizer step.

    Raises:
        ConfigError: If the settings cannot be right, whatever the model.
    """

    inputs: ClassVar[tuple[str, ...]]
    """The entries of a batch that go into the model."""

    padding: ClassVar[Mapping[str, int]] = {}
    """What fills up the entries of a batch (B, T) where another batch, beside which it is trained, has a larger T.
    Nothing may depend on it, as the mask among them tells the model. Without any, such batches are trained apart."""

    def __init__(
        self,
        *,
        model: str | None = None,
        config: dict[str, Any] | None = None,
        quantization: dict[str, Any] | None = None,
        lora: LoraConfig | None = LoraConfig(r=8, lora_alpha=16),  # noqa: B008 (shown as the default; copied when used)
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["lora", "optimizer", "lr_scheduler"])
        # Back from a checkpoint, which holds plain values only.
        self.lora = LoraConfig(**lora) if isinstance(lora, Mapping) else lora
        self.save_hyperparameters({"lora": _plain(self.lora)})
        # A lambda does not go through pickle, to another process: the default is looked up again.
        self._optimizer = None if optimizer is _default_optimizer() else optimizer
        self._lr_scheduler = lr_scheduler
        self.source = Source.of(model, config, quantization)
        self.model: nn.Module | None = None
        self._head_names: list[str] = []
        self.metrics = nn.ModuleDict(self.make_metrics())
        if problems := self.problems():
            raise ConfigError(problems)

    # What a task defines

    def load_model(self) -> Loaded:
        """The foundation model with its head, before LoRA."""
        raise NotImplementedError

    def encode(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, Tensor]:
        """Raw columns of a whole data set as tensors of equal length (N, ...), without the labels of a classifier."""
        raise NotImplementedError

    def problems(self) -> list[str]:
        """What is wrong with the settings, in their own words; nothing is loaded."""
        return self.source.problems()

    def check_targets(self, labels: Tensor) -> list[str]:
        """What is wrong with the labels of a data set, before work starts."""
        return []

    def make_metrics(self) -> dict[str, Metric]:
        """The metrics of an evaluation by name; see `measured`."""
        return {"loss": Mean(), "accuracy": Mean()}

    # What an objective may ask for

    def logits(self, batch: Batch) -> Tensor:
        """Scores of the classes, shape (B, ..., C)."""
        return self(**self.model_inputs(batch))

    def model_inputs(self, batch: Batch) -> dict[str, Tensor]:
        """What of a batch goes into the model, by the names of its arguments."""
        return {name: batch[name] for name in self.inputs if name in batch}

    def features(self, batch: Batch) -> Tensor:
        """What the head sees, shape (B, D)."""
        return self.logits_and_features(batch)[1]

    def classify(self, features: Tensor) -> Tensor:
        """What the head makes of features (B, D), shape (B, C).

        Raises:
            ConfigError: If the head is more than one linear layer: what it reads is then not known from (B, D).
        """
        if problems := self._head_problems():
            raise ConfigError(problems)
        head = self.head_module()
        assert head is not None
        logits: Tensor = head(features)
        return logits

    def offer_problems(self, needs: Collection[str]) -> list[str]:
        """Why some of what an algorithm asks for, by names of methods, cannot be had of this model with its settings.

        Asked when the model has been built.
        """
        inherited = type(self).classify is ClientModule.classify
        return self._head_problems() if "classify" in needs and inherited else []

    def _head_problems(self) -> list[str]:
        head = self.head_module()
        linear = head.original_module if isinstance(head, AuxiliaryTrainingWrapper) else head
        if isinstance(linear, nn.Linear):
            return []
        return [
            f"Expected the head of {type(self).__name__} to be one linear layer, to classify features with, but "
            f"got {type(linear).__name__}. Override `classify`, or choose a method that mixes logits."
        ]

    def targets(self, batch: Batch) -> Tensor:
        """The right classes, shape (B, ...), aligned with `logits`."""
        return batch["labels"]

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats, a scalar."""
        return cross_entropy(logits.float(), targets)

    def count_targets(self, batch: Batch) -> Tensor:
        """How many targets `loss` is a mean over, a scalar: what processes that share a batch weigh their losses by."""
        return (self.targets(batch) != IGNORED).sum()

    def logits_and_features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Both from one forward pass."""
        seen: list[Tensor] = []
        handles = [m.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for m in self.feature_readers()]
        try:
            logits = self.logits(batch)
        finally:
            for handle in handles:
                handle.remove()
        return logits, self.pool_features(seen[0], batch)

    def feature_readers(self) -> list[nn.Module]:
        """Modules of which the first to run gets the features as its input: the head."""
        return [self.backbone.get_submodule(name) for name in self._head_names]

    def pool_features(self, features: Tensor, batch: Batch) -> Tensor:
        """Reduce what the head gets to one vector a row, (B, D); a head that gets all positions reads the first."""
        return features[:, 0] if features.ndim == 3 else features.flatten(1)  # (B, D, 1, 1) from convolutions

    # The model

    def configure_model(self) -> None:
        """Build the model, once. New weights are drawn from the global generators."""
        if self.model is not None:
            return
        loaded = self.load_model()
        self._head_names = self.find_heads(loaded)
        if self.lora is None:
            loaded.model.requires_grad_(False)
            for name in self._head_names:
                loaded.model.get_submodule(name).requires_grad_(True)
            self.model = loaded.model
        else:
            lora = copy.deepcopy(self.lora)
            lora.modules_to_save = sorted({*(lora.modules_to_save or []), *self._head_names}) or None
            if lora.target_modules is None and lora.target_parameters is None:
                lora.target_modules = attention_linears(loaded.model)
            self.model = add_lora(loaded.model, lora)
        self.model.train()  # Hugging Face loads in eval mode, and Lightning leaves modes alone: no dropout otherwise

    def find_heads(self, loaded: Loaded) -> list[str]:
        """Names of the modules that are trained in full."""
        return trained_in_full(loaded)

    @property
    def backbone(self) -> nn.Module:
        """The Hugging Face model, its head included, without PEFT's wrapper.

        Raises:
            RuntimeError: If it has not been built yet.
        """
        if self.model is None:
            raise RuntimeError(
                f"Expected {type(self).__name__} to have its model, but got none. Call `configure_model()` first."
            )
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def head_module(self) -> nn.Module | None:
        """The task head, or `None` if there is none, or several parts, or no model yet."""
        return self.backbone.get_submodule(self._head_names[0]) if len(self._head_names) == 1 else None

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits from the model's inputs by name."""
        if self.model is None:
            self.configure_model()
        logits: Tensor = self.model(**inputs).logits  # type: ignore[misc]
        return logits

    # Lightning's steps

    def training_step(self, batch: Batch, batch_idx: int = 0) -> Tensor:
        """The loss of a batch; logs it as ``loss``."""
        loss = self.loss(self.logits(batch), self.targets(batch))
        self.log("loss", loss, batch_size=_num_rows(batch), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int = 0) -> None:
        """Adds a batch to the metrics and logs them, each under its name."""
        for name, (value, weight) in self.measured(batch).items():
            self.metrics[name].update(value, weight)  # type: ignore[operator]
        for name, metric in self.metrics.items():
            self.log(name, metric, on_step=False, on_epoch=True, batch_size=_num_rows(batch), prog_bar=True)  # type: ignore[arg-type]

    test_step = validation_step

    def measured(self, batch: Batch) -> Measured:
        """What a batch adds to the metrics, each weighted by the targets that count. Waits for no device."""
        logits, targets = self.logits(batch), self.targets(batch)
        counts = targets != IGNORED
        return {
            "loss": (self.loss(logits, targets), counts.sum()),
            "accuracy": ((logits.argmax(-1) == targets).float(), counts.float()),
        }

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        """``probs`` (B, C) and ``labels`` (B)."""
        probs = self.logits(batch).float().softmax(-1)
        return {"probs": probs, "labels": probs.argmax(-1)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what a federation has put beside slot ``"global"``: a new module has no place for it."""
        for name in names_beside(self):
            checkpoint["state_dict"].pop(name, None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What a federation has put beside slot ``"global"`` stays as it is."""
        own = self.state_dict()
        for name in names_beside(self):
            checkpoint["state_dict"].setdefault(name, own[name])

    def configure_optimizers(self) -> Any:
        """The optimizer over what is trained now, and its scheduler."""
        optimizer = (self._optimizer or _default_optimizer())([p for p in self.parameters() if p.requires_grad])
        if self._lr_scheduler is None:
            return optimizer
        scheduler = self._lr_scheduler(optimizer)
        monitor = getattr(scheduler, "monitor", None)  # LightningCLI's ReduceLROnPlateau has one
        timing = {"interval": "step"} if monitor is None else {"interval": "epoch", "monitor": monitor}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **timing}}


def _default_optimizer() -> OptimizerCallable:
    return (ClientModule.__init__.__kwdefaults__ or {})["optimizer"]


def _num_rows(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _plain(lora: LoraConfig | None) -> dict[str, Any] | None:
    """The settings that are not PEFT's defaults, as plain values for logs and checkpoints."""
    if lora is None:
        return None
    values = {f.name: getattr(lora, f.name) for f in fields(lora) if f.init}
    default = LoraConfig()
    changed = {name: value for name, value in values.items() if value != getattr(default, name)}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in changed.items()}
