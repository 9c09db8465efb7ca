"""Every configuration in `configs/` runs: one round, on the CPU."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_fed.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if "suites" not in path.parts)
ONE_ROUND = {
    "rounds": 1,
    "accelerator": "cpu",
    "devices": 1,
    "precision": "32-true",
    "progress": False,
}


def test_there_are_some() -> None:
    assert CONFIGS / "quickstart.yaml" in FILES


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_one_round(path: Path, tmp_path: Path, one_thread: None, request: pytest.FixtureRequest) -> None:
    said = yaml.safe_load(path.read_text())
    overrides = [f"--federation.{key}={str(value).lower()}" for key, value in ONE_ROUND.items()]
    if path.parent.name == "text":
        overrides += files_here(said, request.getfixturevalue("shared_data"), tmp_path / "encoder")
    runs = tmp_path / "runs"
    assert main(["fit", "--config", str(path), *overrides, f"--federation.run_dir={runs}"]) == 0
    # The record of the run is the configuration, and what was not said here is as the file says it.
    record = yaml.safe_load((runs / "version_0" / "config.yaml").read_text())
    assert record["seed_everything"] == said.get("seed_everything", 0)
    assert {key: record["federation"][key] for key in said["federation"] if key not in ONE_ROUND} == {
        key: value for key, value in said["federation"].items() if key not in ONE_ROUND
    }


def files_here(said: dict[str, Any], shared_data: Path, encoder: Path) -> list[str]:
    """Where a user would put `data/X` and `models/X`: the shared data; for an encoder of the Hub, a tiny stand-in."""
    source = said["data"]["source"]["init_args"]
    places = {f"data.source.{key}": value for key, value in source.items() if str(value).startswith("data/")}
    model: str = said["model"]["init_args"]["model"]
    if model.startswith("models/"):
        places["model.model"] = model
    found = {key: shared_data / value.partition("/")[2] for key, value in places.items()}
    if "model.model" not in found:
        found["model.model"] = encoder
        write_encoder(encoder, shared_data / "tokenizers" / "bert-base-uncased-vocab.txt")
    missing = [path for path in found.values() if not path.exists()]
    assert not missing
    # Only those who hold the most, where there are limits: everybody is evaluated twice.
    most = [f"--data.min_total.{name}=18000" for name in said["data"].get("min_total", {})]
    return [*(f"--{key}={path}" for key, path in found.items()), *most]


def write_encoder(folder: Path, vocabulary: Path) -> None:
    """A sentence encoder of random weights in Hugging Face's layout, with a real tokenizer."""
    from transformers import BertConfig, BertModel, BertTokenizer

    num_tokens = len(vocabulary.read_text("utf-8").splitlines())
    config = BertConfig(
        vocab_size=num_tokens, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizer(str(vocabulary)).save_pretrained(folder)
    pooling = folder / "1_Pooling"
    pooling.mkdir()
    (pooling / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
