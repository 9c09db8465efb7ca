"""Clients trained together against the same clients one after another. In real modules, over whole federations."""

import csv
from typing import Any

import pytest
import torch
from peft import LoraConfig

from lit_fed import FederatedDataModule, TextClassifier
from lit_fed.algorithms import AllSmall, Ditto, FedAvg, FedDPA, FedProx, FedRA, FedRep, FFALoRA
from lit_fed.core.errors import ClientFailure, ConfigError
from lit_fed.engine import together
from tests.engine.tiny import Net, fit, pictures, points, sgd, texts as language_texts, tiny_llama, tiny_vit
from tests.laws.test_cache import BERT, TOKENS, ten_pictures_each, texts

pytestmark = pytest.mark.usefixtures("one_thread")

FLOAT32 = 1e-5  # the same sums in matrices of other shapes, over a few steps
BFLOAT16 = 2e-2  # eight bits of a number; SGD with a rate of 0.5 moves the head by about 0.3


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


def both(algorithm: Any, module: Any, data: Any, tmp_path: Any, tolerance: float = FLOAT32, **settings: Any) -> Any:
    """One after another, then together; what is served, and what is told of each client, is the same."""
    size = settings.pop("batch_clients", 3)
    alone = fit(algorithm(), module(), data(), tmp_path / "alone", cache=None, **settings)
    joint = fit(algorithm(), module(), data(), tmp_path / "joint", cache=None, batch_clients=size, **settings)
    moved = max((alone.adapter[name] - joint.adapter[name]).abs().max() for name in alone.adapter)
    assert moved <= tolerance
    for one, other in zip(rows_of(alone), rows_of(joint), strict=True):
        same = ("round", "client", "examples", "steps", "up_bytes", "down_bytes", "blocks", "allocation", "failure")
        assert [one[name] for name in same] == [other[name] for name in same]
        assert float(one["loss"] or 0) == pytest.approx(float(other["loss"] or 0), abs=10 * tolerance)
    return alone, joint


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2, eps=1e-4)


def bert(dropout: float = 0.0) -> TextClassifier:
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["query", "value"])
    return TextClassifier(2, pooling="mean", dropout=dropout, config=BERT, lora=lora, optimizer=sgd)


MODELS = {
    "vit": (tiny_vit, pictures),
    "vit, adamw": (lambda: tiny_vit(optimizer=adamw), pictures),
    "vit, batches of 4, 4 and 2": (tiny_vit, ten_pictures_each),
    "bert": (bert, texts),
    "bert, its own head": (
        lambda: TextClassifier(
            2, pooling="model", config={**BERT, "classifier_dropout": 0.0}, optimizer=sgd,
            lora=LoraConfig(r=2, lora_alpha=4, target_modules=["query"]),
        ),
        texts,
    ),
    "llama, means over unequal numbers of tokens": (tiny_llama, language_texts),
    "llama, packed": (lambda: tiny_llama(packing=True), language_texts),
}  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_fedavg(tmp_path, seen, model):
    make, data = MODELS[model]
    alone, joint = both(lambda: FedAvg(local_epochs=2), make, data, tmp_path)
    number = len(alone.clients)
    assert seen == ([number, number], [])
    start = max(float(t.abs().max()) for n, t in alone.adapter.items() if n.endswith("lora_B"))  # 0 at the start
    assert start > 100 * FLOAT32
