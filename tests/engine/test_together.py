"""What clients are not trained together for: refused before work starts, or told, and done one after another."""

import re
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from flwr_datasets.partitioner import IidPartitioner
from torch.utils.data import DataLoader

from lit_fed import FederatedDataModule, ImageClassifier
from lit_fed.algorithms import FedAvg
from lit_fed.algorithms.base import GLOBAL, LOCAL, report
from lit_fed.core.errors import ConfigError
from lit_fed.core.names import is_head
from lit_fed.core.types import Update
from lit_fed.engine import together
from tests.engine.tiny import Net, Pictures, fit, pictures, points, sgd, texts, tiny_llama, tiny_vit

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def lines(monkeypatch):
    found: list[str] = []
    monkeypatch.setattr(together, "rank_zero_info", found.append)
    return found


def rebuilt(kind: type[ImageClassifier], **settings: Any) -> ImageClassifier:
    """The tiny ViT as another class."""
    like = tiny_vit()
    return kind(
        **{"num_labels": 2, "config": dict(like.source.config), "lora": like.lora, "optimizer": sgd, **settings}
    )


class Centred(ImageClassifier):
    """Logits of a row depend on the other rows of its batch."""

    def logits(self, batch: Any) -> torch.Tensor:
        logits = super().logits(batch)
        return logits - logits.mean(0)


class Odd(torch.optim.SGD):
    """Nobody knows what it does."""


class Top(FedAvg):
    """FedAvg of the head and the last of three blocks."""

    def local(self, learner: Any, task: Any, private: Any) -> Any:
        learner.activate(where=lambda name: is_head(name) or name.startswith("blocks.2."))
        return super().local(learner, task, private)


class Scoring(FedAvg):
    def local(self, learner: Any, task: Any, private: Any) -> Any:
        learner.evaluate("val")
        return super().local(learner, task, private)


class Asking(FedAvg):
    def local(self, learner: Any, task: Any, private: Any) -> Any:
        learner.load(task.adapter)
        fit = learner.fit(epochs=1, objective=lambda step: step.loss() + 0.1 * step.features().square().mean())
        return report(learner, learner.state(), fit), private


class Both(FedAvg):
    slots = (GLOBAL, LOCAL)

    def local(self, learner: Any, task: Any, private: Any) -> Any:
        learner.activate(GLOBAL, beside={LOCAL: None})
        learner.load(task.adapter)
        fit = learner.fit(epochs=1, objective=lambda step: step.loss() + step.loss({LOCAL: 1.0}))
        return report(learner, learner.state(), fit), private


class Idle(FedAvg):
    def local(self, learner: Any, task: Any, private: Any) -> Any:
        learner.load(task.adapter)
        return Update(learner.client.id, learner.state(), learner.client.num_examples), private


ALONE = {
    "dropout": (FedAvg, lambda: tiny_vit(dropout=0.5), "random numbers are drawn in the model"),
    "rows that mix": (FedAvg, lambda: rebuilt(Centred), "Centred computes something else for rows among"),
    "an optimizer of one's own": (
        FedAvg, lambda: tiny_vit(optimizer=lambda p: Odd(p, lr=0.1)), "Odd is none of PyTorch's",
    ),
    "a schedule of what is logged": (
        FedAvg,
        lambda: rebuilt(ImageClassifier, lr_scheduler=_plateau),
        "their learning rates follow what they log",
    ),
    "rows that are packed, to different lengths": (
        FedAvg, lambda: tiny_llama(packing=True), "their batches have unequal shapes",
    ),
    "the cache": (Top, tiny_vit, r"are in the cache \(`federation.cache: null`\)"),
    "scores within a turn": (Scoring, tiny_vit, "Scoring asks clients for scores of their data"),
    "a step that is asked for features": (Asking, tiny_vit, "their losses ask for `features` of a step"),
    "a training for each of two slots at once": (Both, tiny_vit, "each trains several slots at once"),
    "nothing to train": (Idle, tiny_vit, "Idle trains nothing in a round"),
}  # fmt: skip


def _plateau(optimizer: Any) -> Any:
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    schedule.monitor = "loss"
    return schedule


@pytest.mark.parametrize("case", ALONE)
def test_what_cannot_be_joined_is_told_once_and_done_as_ever(tmp_path, lines, case):
    method, module, reason = ALONE[case]
    data = texts if "packed" in case else pictures
    joint = fit(method(local_epochs=1), module(), data(), tmp_path / "joint", batch_clients=3)
    (line,) = lines
    assert line.startswith("Clients train one after another in spite of `federation.batch_clients: 3`: ")
    assert re.search(reason, line)
    alone = fit(method(local_epochs=1), module(), data(), tmp_path / "alone")
    assert joint.summary["state_digest"] == alone.summary["state_digest"]


class Torn(Pictures):
    """Some pictures cannot be read for training."""

    def __init__(self, rows: set[int]) -> None:
        super().__init__()
        self.torn = [self.table.column("pixel_values")[row] for row in rows]

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.table, 4, shuffle=True, collate_fn=self.read)

    def read(self, batch: Any) -> Any:
        if any(torch.equal(torn, pixels) for torn in self.torn for pixels in batch["pixel_values"]):
            raise OSError("torn")
        return self.collate(batch)


def test_a_client_whose_data_break_is_found_alone(tmp_path, lines):
    def data(rows: set[int]) -> FederatedDataModule:
        return FederatedDataModule(Torn(rows), IidPartitioner(num_partitions=3), val_fraction=0.25, test_fraction=0.25)

    first = data(set())
    first.setup_clients()
    client = sorted(first.allocation.rows["train"])[1]
    torn = {int(first.allocation.rows["train"][client][0])}
    given = {"failure": "drop", "rounds": 1}
    joint = fit(FedAvg(local_epochs=1), tiny_vit(), data(torn), tmp_path / "joint", batch_clients=3, **given)
    assert [line.partition(": ")[2].partition(": ")[2] for line in lines] == ["OSError: torn."]
    alone = fit(FedAvg(local_epochs=1), tiny_vit(), data(torn), tmp_path / "alone", **given)
    assert joint.history[-1]["num_failures"] == alone.history[-1]["num_failures"] == 1
    assert joint.summary["state_digest"] == alone.summary["state_digest"]


class Hooked(ImageClassifier):
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        pass


class OwnStep(ImageClassifier):
    def training_step(self, batch: Any, batch_idx: int = 0) -> torch.Tensor:
        return 2 * super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("module", "settings", "reason"),
    [
        (tiny_vit, {"batch_clients": 0}, "`federation.batch_clients` to be >= 1, but got 0"),
        (tiny_vit, {"parallel": "within"}, "with `parallel: within`"),
        (tiny_vit, {"precision": "16-mixed"}, "with `precision: 16-mixed`"),
        (tiny_vit, {"callbacks": [pl.Callback()]}, "with Lightning callbacks"),
        (Net, {}, "with a `training_step` of Net's own"),
        (lambda: rebuilt(OwnStep), {}, "with a `training_step` of OwnStep's own"),
        (lambda: rebuilt(Hooked), {}, r"with hooks of Hooked that see one client's training \(on_train_batch_end\)"),
    ],
)
def test_what_can_never_be_joined_is_refused(tmp_path, module, settings, reason):
    data = points() if module is Net else pictures()
    with pytest.raises(ConfigError, match=reason):
        fit(FedAvg(local_epochs=1), module(), data, tmp_path, **{"batch_clients": 2, **settings})
    assert not list(tmp_path.iterdir())
