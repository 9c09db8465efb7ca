"""A client's turn is what Lightning's own Trainer would have done with the same batches."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from lit_fed.algorithms import FedAvg
from lit_fed.core.seeding import generator
from lit_fed.data.federated import FederatedDataModule
from tests.engine.tiny import Net, fit, points

pytestmark = pytest.mark.usefixtures("one_thread")


def train_loader(data: FederatedDataModule) -> DataLoader[Any]:
    """The batches of the first round's only client."""
    return data.train_loader("00", generator(0, "shuffle", 0, "00", 0))


def trainer_weights(
    module: pl.LightningModule, epochs: int, steps: int = -1, **settings: Any
) -> dict[str, torch.Tensor]:
    data = points(1)
    data.setup_clients()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=None if steps > 0 else epochs, max_steps=steps, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        limit_val_batches=0, **settings,
    )  # fmt: skip
    trainer.fit(module, train_loader(data))
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def federated_weights(
    module: pl.LightningModule, tmp_path: Any, algorithm: FedAvg, **settings: Any
) -> dict[str, torch.Tensor]:
    fit(algorithm, module, points(1), tmp_path, rounds=1, **settings)
    return {name: p.detach().clone() for name, p in module.named_parameters()}


class Scheduled(Net):
    """One optimizer with a scheduler for every step, given as a dictionary."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.head.parameters(), lr=0.1)
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Halved(Net):
    """A scheduler for every epoch, given as two lists."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.head.parameters(), lr=0.5, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class Plateau(Net):
    """A scheduler that watches what the module logs."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.head.parameters(), lr=0.5)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=0, threshold=10.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "train_loss"}}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", 1.0)  # never better: the rate falls after every epoch
        return {"loss": loss, "extra": 1}


class Manual(Net):
    """Manual optimization with two optimizers, clipping and accumulation of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.body.requires_grad_(True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.body.parameters(), lr=0.1), torch.optim.Adam(self.head.parameters(), lr=0.05)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        first, second = self.optimizers()
        loss = torch.nn.functional.cross_entropy(self(x), y)
        self.manual_backward(loss)
        if (batch_idx + 1) % 2 == 0:
            self.clip_gradients(second, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
            first.step()
            second.step()
            first.zero_grad()
            second.zero_grad()


class Own(Net):
    """Overrides the hooks that say how to clip and to step."""

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="value")

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.5 / (batch_idx + 1)
        optimizer.step(closure=optimizer_closure)


@pytest.mark.parametrize("make", [Net, Scheduled, Halved, Plateau, Manual, Own], ids=lambda m: m.__name__)
def test_one_client_is_plain_training(tmp_path, make):
    expected = trainer_weights(make(), epochs=2)
    # With lean kernels Adam rounds otherwise, see test_fused_optimizers.py.
    found = federated_weights(make(), tmp_path, FedAvg(local_epochs=2), kernels="torch")
    assert any(not torch.equal(found[name], p) for name, p in make().named_parameters())  # something was learned
    for name, weights in expected.items():
        assert torch.equal(found[name], weights), name


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 4},  # six batches: the last group is of two
    ],
    ids=str,
)
def test_clipping_and_accumulation_are_trainers(tmp_path, settings):
    expected = trainer_weights(Net(), epochs=1, **settings)
    found = federated_weights(Net(), tmp_path, FedAvg(), **settings)
    for name, weights in expected.items():
        assert torch.equal(found[name], weights), name


def test_accumulated_batches_are_one_large_batch(tmp_path):
    def weights(batch_size: int, group: int) -> torch.Tensor:
        module = Net()
        data = points(1, batch_size=batch_size)
        fit(FedAvg(), module, data, tmp_path, rounds=1, accumulate_grad_batches=group)
        return module.head.weight.detach()

    # 24 training examples: 8 batches of 3 in groups of 4 are 2 batches of 12, but for float32 sums
    torch.testing.assert_close(weights(3, 4), weights(12, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 5, 6, 20])
def test_steps_are_optimizer_steps(tmp_path, steps):
    expected = trainer_weights(Net(), epochs=-1, steps=steps)
    found = federated_weights(Net(), tmp_path, FedAvg(local_steps=steps))
    for name, weights in expected.items():
        assert torch.equal(found[name], weights), name


class Recorder(pl.Callback):
    """Writes down which hooks are called, in which order."""

    HOOKS = (
        "on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_before_zero_grad",
        "on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_train_batch_end",
        "on_train_epoch_end", "on_train_end", "on_fit_end",
    )  # fmt: skip

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []


for _hook in Recorder.HOOKS:

    def _record(self: Recorder, trainer: Any, module: Any, *args: Any, _hook: str = _hook) -> None:
        self.calls.append((_hook, trainer.current_epoch, trainer.global_step))

    setattr(Recorder, _hook, _record)


def test_lightning_callbacks_see_what_a_trainer_shows(tmp_path):
    ours, theirs = Recorder(), Recorder()
    federated_weights(Net(), tmp_path, FedAvg(local_epochs=2), callbacks=[ours])
    trainer_weights(Net(), epochs=2, callbacks=[theirs])
    # Trainer zeroes gradients inside the optimizer's closure, after the forward; the order of the rest is the same.
    plain = [call for call in ours.calls if call[0] != "on_before_zero_grad"]
    expected = [call for call in theirs.calls if call[0] != "on_before_zero_grad"]
    assert plain == expected
    assert len(ours.calls) == len(theirs.calls)


def test_the_module_is_an_ordinary_module_again(tmp_path):
    module = Net()
    federated_weights(module, tmp_path, FedAvg())
    assert module._trainer is None
    assert module._fabric is None
    assert "log" not in vars(module)
    trainer_weights(module, epochs=1)  # and a Trainer takes it on
