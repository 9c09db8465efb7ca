"""Clients trained together against the same clients one after another. In real modules, over whole federations."""

import csv
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from flwr_datasets.partitioner import IidPartitioner, LinearPartitioner
from peft import LoraConfig
from torch.utils.data import DataLoader, Dataset

from lit_fed import FederatedDataModule, TextClassifier
from lit_fed.algorithms import AllSmall, Ditto, FedAvg, FedProx, FedRA, FedRep, FFALoRA
from lit_fed.algorithms.base import report
from lit_fed.core.errors import ClientFailure, StateMismatchError
from lit_fed.core.tree import flatten
from lit_fed.data import TrimPadding
from lit_fed.engine import joint as joint_batches
from lit_fed.engine import together
from lit_fed.engine.storage import load_tree
from tests.engine.tiny import Pictures, fit, pictures, sgd, tiny_llama, tiny_vit
from tests.engine.tiny import texts as language_texts
from tests.laws.test_cache import BERT, Texts, ten_pictures_each, texts

pytestmark = pytest.mark.usefixtures("one_thread")

FLOAT32 = 1e-5  # the same sums in matrices of other shapes, over a few steps
BFLOAT16 = 2e-2  # numbers of eight bits; SGD with a rate of 0.5 moves the head by about 0.3


@pytest.fixture
def seen(monkeypatch):
    """The sizes of the groups that were trained, and the lines that were said."""
    groups: list[int] = []
    lines: list[str] = []
    plain = together.Together._fit_joint

    def watched(self: Any, requests: Any) -> Any:
        found = plain(self, requests)
        groups.append(len(requests))
        return found

    monkeypatch.setattr(together.Together, "_fit_joint", watched)
    monkeypatch.setattr(together, "rank_zero_info", lines.append)
    return groups, lines


def rows_of(result: Any) -> list[dict[str, str]]:
    with (result.path / "clients.csv").open() as file:
        return list(csv.DictReader(file))


def private_of(result: Any) -> dict[str, torch.Tensor]:
    files = sorted((result.path / "private").rglob("*.safetensors"))
    held = {f"{file.parent.name} {file.stem}": load_tree(file) for file in files}
    return flatten(held)[0]


def both(algorithm: Any, module: Any, data: Any, tmp_path: Any, tolerance: float = FLOAT32, **settings: Any) -> Any:
    """One after another, then together: what is served, what is kept, and what is told of each client is the same."""
    size = settings.pop("batch_clients", 3)
    settings = {"cache": None, **settings}
    alone = fit(algorithm(), module(), data(), tmp_path / "alone", **settings)
    joint = fit(algorithm(), module(), data(), tmp_path / "joint", batch_clients=size, **settings)
    for expected, found in ((alone.adapter, joint.adapter), (private_of(alone), private_of(joint))):
        assert expected.keys() == found.keys()
        assert max([float((expected[name] - found[name]).abs().max()) for name in expected], default=0.0) <= tolerance
    for one, other in zip(rows_of(alone), rows_of(joint), strict=True):
        same = ("round", "client", "examples", "steps", "up_bytes", "down_bytes", "blocks", "allocation", "failure")
        assert [one[name] for name in same] == [other[name] for name in same]
        assert float(one["loss"] or 0) == pytest.approx(float(other["loss"] or 0), abs=10 * tolerance)
    return alone


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2, eps=1e-4)


def bert(**settings: Any) -> TextClassifier:
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["query", "value"])
    config = {**BERT, "classifier_dropout": 0.0}
    return TextClassifier(2, **{"pooling": "mean", "dropout": 0.0, **settings}, config=config, lora=lora, optimizer=sgd)


MODELS = {
    "vit": (tiny_vit, pictures),
    "vit, adamw": (lambda: tiny_vit(optimizer=adamw), pictures),
    "vit, batches of 4, 4 and 2": (tiny_vit, ten_pictures_each),
    "bert": (bert, texts),
    "bert, its own head": (lambda: bert(pooling="model"), texts),
    "llama, means over unequal numbers of tokens": (tiny_llama, language_texts),
}


@pytest.mark.parametrize("model", MODELS)
def test_fedavg(tmp_path, seen, model):
    make, data = MODELS[model]
    result = both(lambda: FedAvg(local_epochs=2), make, data, tmp_path)
    number = len(result.clients)
    assert seen == ([number, number], [])
    zero_at_first = [tensor for name, tensor in result.adapter.items() if name.endswith(("lora_B", "bias"))]
    assert max(float(tensor.abs().max()) for tensor in zero_at_first) > 100 * FLOAT32


class Trimmed(Texts):
    """A batch is as wide as its longest text."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.table, 2, shuffle=True, collate_fn=TrimPadding())


def trimmed_texts() -> FederatedDataModule:
    return FederatedDataModule(Trimmed(False), IidPartitioner(num_partitions=3), val_fraction=0.25, test_fraction=0.25)


UNEQUAL = {
    "bert, mean over tokens": (bert, trimmed_texts),
    "bert, its own head": (lambda: bert(pooling="model"), trimmed_texts),
    "llama": (tiny_llama, lambda: language_texts(trimmed=True)),
}


@pytest.mark.parametrize("model", UNEQUAL)
def test_batches_of_unequal_widths(tmp_path, seen, monkeypatch, model):
    make, data = UNEQUAL[model]
    added: list[int] = []

    def watched(tensor: torch.Tensor, widths: tuple[int, int], **fill: Any) -> torch.Tensor:
        added.append(widths[1])
        return torch.nn.functional.pad(tensor, widths, **fill)

    monkeypatch.setattr(joint_batches, "pad", watched)
    result = both(lambda: FedAvg(local_epochs=2), make, data, tmp_path)
    number = len(result.clients)
    assert seen == ([number, number], [])
    assert max(added) > 0
    moved = [tensor for name, tensor in result.adapter.items() if name.endswith(("lora_B", "bias"))]  # zero at first
    assert max(float(tensor.abs().max()) for tensor in moved) > 100 * FLOAT32


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_in_bfloat16(tmp_path, seen, precision):
    both(lambda: FedAvg(local_epochs=2), tiny_vit, pictures, tmp_path, BFLOAT16, rounds=1, precision=precision)
    assert seen == ([3], [])


class SlowB(FedAvg):
    """FedAvg with a learning rate for B apart."""

    def local(self, learner: Any, task: Any, private: Any) -> Any:
        learner.load(task.adapter)
        fit = learner.fit(epochs=1, rates=lambda name: 0.05 if name.endswith("lora_B") else None)
        return report(learner, learner.state(), fit), private


METHODS = {
    "learning rates of some": (SlowB, [3]),
    "a loss of its own": (lambda: FedProx(mu=0.5, local_epochs=2), [3]),
    "some blocks": (lambda: AllSmall(capacities=2, local_epochs=1), [3]),
    "only B": (lambda: FFALoRA(local_epochs=1), [3]),
    "two trainings, a head of one's own": (lambda: FedRep(head_epochs=1, local_epochs=1), [3, 3]),
    "two slots, one after the other": (lambda: Ditto(mu=0.5, local_epochs=1), [3, 3]),
}


@pytest.mark.parametrize("method", METHODS)
def test_methods(tmp_path, seen, method):
    algorithm, groups = METHODS[method]
    both(algorithm, tiny_vit, pictures, tmp_path)
    assert seen == (groups * 2, [])


def test_clients_with_different_blocks_are_in_different_groups(tmp_path, seen):
    """Six clients hold one of three blocks each."""
    data = lambda: pictures(clients=6)  # noqa: E731
    both(lambda: FedRA(capacities=1, local_steps=2), tiny_vit, data, tmp_path, rounds=1)
    groups, lines = seen
    assert lines == []
    assert 2 <= sum(groups) <= 6
    assert len(groups) <= 3


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_clip_val": 0.05},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 2},
    ],
    ids=["norm", "value", "accumulate"],
)
def test_clipping_and_accumulation_are_each_clients_own(tmp_path, seen, settings):
    both(lambda: FedAvg(local_epochs=1), tiny_vit, ten_pictures_each, tmp_path, rounds=1, **settings)
    assert seen == ([3], [])


def uneven() -> FederatedDataModule:
    """5, 10 and 15 training examples in batches of 4."""
    partitioner = LinearPartitioner(num_partitions=3)
    return FederatedDataModule(Pictures(60), partitioner, val_fraction=0.25, test_fraction=0.25)


def test_clients_with_unequal_numbers_of_examples(tmp_path, seen):
    """In 5 steps one makes two and a half epochs (4, 1, 4, 1, 4 examples), another not much more than one."""
    both(lambda: FedAvg(local_steps=5), tiny_vit, uneven, tmp_path, rounds=1)
    assert seen == ([3], [])


def test_epochs_of_unequal_length_are_not_joined(tmp_path, seen):
    both(lambda: FedAvg(local_epochs=1), tiny_vit, uneven, tmp_path, rounds=1)
    assert seen == ([], [])


class Noisy(Dataset):
    """Pictures that are drawn anew from the global generator whenever one looks at them."""

    def __init__(self, table: Any) -> None:
        self.pixels, self.labels = table.column("pixel_values"), table.column("labels")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"pixel_values": self.pixels[row] + torch.randn(1, 8, 8), "labels": self.labels[row]}


class NoisyPictures(pl.LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Noisy(Pictures(30).table), 4, shuffle=True)


def test_augmentation_is_each_clients_own(tmp_path, seen):
    data = lambda: FederatedDataModule(NoisyPictures(), LinearPartitioner(3), val_fraction=0.2, test_fraction=0.2)  # noqa: E731
    both(lambda: FedAvg(local_steps=4), tiny_vit, data, tmp_path, rounds=1, evaluate_every=0)
    assert sum(seen[0]) >= 2
    assert seen[1] == []


def sick() -> FederatedDataModule:
    """One training example of the second client is no number."""
    data = ten_pictures_each()
    data.setup_clients()
    client = sorted(data.allocation.rows["train"])[1]
    data.source.table.column("pixel_values")[int(data.allocation.rows["train"][client][0])] = float("nan")
    return data


def test_a_client_that_fails_fails_alone(tmp_path, seen):
    result = both(lambda: FedAvg(local_epochs=1), tiny_vit, sick, tmp_path, failure="drop", rounds=1)
    failed = [row["client"] for row in rows_of(result) if row["failure"]]
    assert failed == [rows_of(result)[1]["client"]]
    assert seen == ([3], [])
    with pytest.raises(ClientFailure, match=f"{failed[0]}.*its training loss became nan"):
        fit(FedAvg(local_epochs=1), tiny_vit(), sick(), tmp_path / "raise", batch_clients=3, rounds=1)


def test_a_run_is_repeated_and_continued_to_the_same_bytes(tmp_path):
    method = lambda: FedAvg(local_epochs=1)  # noqa: E731
    whole = fit(method(), tiny_vit(), pictures(), tmp_path / "whole", batch_clients=2)
    fit(method(), tiny_vit(), pictures(), tmp_path / "parts", batch_clients=2, rounds=1)
    parts = fit(method(), tiny_vit(), pictures(), tmp_path / "parts", batch_clients=2, ckpt_path="last")
    assert parts.summary["state_digest"] == whole.summary["state_digest"]
    with pytest.raises(StateMismatchError, match="batch_clients"):
        fit(method(), tiny_vit(), pictures(), tmp_path / "parts", batch_clients=3, rounds=3, ckpt_path="last")
