"""What stands in for the files of a user: shared data, made-up logs, tiny models in place of those of the Hub."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_fed.data.made_logs import write_logs


def files_here(said: Mapping[str, Any], shared_data: Path, encoder: Path) -> list[str]:
    """Where a user would put `data/X` and `models/X`: the shared data; for an encoder of the Hub, a tiny stand-in.

    System logs are made up, a few lines of each node.

    Args:
        said: A configuration whose data are the user's.
        shared_data: The folder of shared data.
        encoder: Where a stand-in is to be written; logs are beside it.

    Returns:
        Settings, as on the command line.
    """
    places = {f"data.source.{key}": value for key, value in said["data"]["source"]["init_args"].items()}
    logs = {}
    if places.pop("data.source.files", None):
        logs = {"data.source.files": write_logs(encoder.parent / "logs", num_lines=100)}
    model: str = said["model"]["init_args"]["model"]
    if model.startswith("models/"):
        places["model.model"] = model
    else:
        write_encoder(encoder, shared_data / "tokenizers" / "bert-base-uncased-vocab.txt")
    found = {key: here for key, value in places.items() if (here := _here(value, shared_data)) != value}
    # Only those who hold the most, where there are limits: everybody is evaluated twice.
    most = {f"data.min_total.{name}": 18000 for name in said["data"].get("min_total", {})}
    given = {"model.model": str(encoder), **found, **logs, **most}
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in given.items()]


def _here(value: Any, shared_data: Path) -> Any:
    """A setting with the places of files that it names, or files by name."""
    if isinstance(value, Mapping):
        return {name: _here(one, shared_data) for name, one in value.items()}
    if not isinstance(value, str) or not value.startswith(("data/", "models/")):
        return value
    place = shared_data / value.partition("/")[2]
    assert place.exists()
    return str(place)


def write_encoder(folder: Path, vocabulary: Path) -> None:
    """A sentence encoder of random weights in Hugging Face's layout, with a real tokenizer."""
    from transformers import BertConfig, BertModel, BertTokenizer

    num_tokens = len(vocabulary.read_text("utf-8").splitlines())
    config = BertConfig(
        vocab_size=num_tokens, hidden_size=16, num_hidden_layers=6, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizer(str(vocabulary)).save_pretrained(folder)
    pooling = folder / "1_Pooling"
    pooling.mkdir()
    (pooling / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
