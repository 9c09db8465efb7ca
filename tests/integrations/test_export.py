"""What leaves a run folder gives the same logits without lit_fed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForImageClassification

from lit_fed.algorithms import FedAvg, Local
from lit_fed.core.errors import ConfigError
from lit_fed.core.seeding import isolated_rng
from lit_fed.integrations.export import export_adapter, export_merged
from tests.engine.tiny import Net, fit, pictures, points, tiny_vit

PIXELS = torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "global": fit(FedAvg(), tiny_vit(), pictures(), folder, rounds=1).path,
        "local": fit(Local(), tiny_vit(), pictures(), folder, rounds=1).path,
        "plain": fit(FedAvg(), Net(), points(), folder, rounds=1).path,
    }


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model.eval()(pixel_values=PIXELS).logits


@pytest.mark.parametrize(("run", "client"), [("global", None), ("local", "01")])
def test_adapter_and_merged_model_agree(run: str, client: str | None, runs: dict[str, Path], tmp_path: Path) -> None:
    export_adapter(runs[run], tmp_path / "adapter", client)
    export_merged(tiny_vit(), runs[run], tmp_path / "merged", client)
    module = tiny_vit()
    with isolated_rng(0, "init"):
        module.configure_model()
    untuned = logits(module.model)
    tuned = logits(PeftModel.from_pretrained(module.model.unload(), tmp_path / "adapter"))
    merged = logits(AutoModelForImageClassification.from_pretrained(tmp_path / "merged"))
    assert torch.allclose(merged, tuned, rtol=0, atol=1e-5)  # float32; W + BA in one matrix or in two products
    assert not torch.allclose(merged, untuned, rtol=0, atol=1e-3)


def test_what_cannot_be_merged_is_said(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Expected a Hugging Face model to merge, but got Net"):
        export_merged(Net(), runs["plain"], tmp_path / "merged")
    export_adapter(runs["plain"], tmp_path / "adapter")
    found = sorted(path.name for path in (tmp_path / "adapter").iterdir())
    assert found == ["README.md", "adapter.safetensors", "config.yaml", "summary.json"]
    assert not (tmp_path / "merged").exists()


def test_a_folder_that_is_there_is_not_touched(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Expected `to` to be a new folder"):
        export_adapter(runs["global"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_clients_without_an_adapter_of_their_own(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Expected `client` to have an adapter of its own, but '01' has none"):
        export_adapter(runs["global"], tmp_path / "to", "01")
    with pytest.raises(ConfigError, match="but 'nobody' has none"):
        export_adapter(runs["local"], tmp_path / "to", "nobody")
