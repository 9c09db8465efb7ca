"""`docs/your_data.md`, done as it says: an empty folder, the wheel, one's own pictures and texts."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.packaging.conftest import REPOSITORY

pytestmark = pytest.mark.slow

PAGE = REPOSITORY / "docs" / "your_data.md"
HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
GREYS = {"daisy": 40, "rose": 128, "tulip": 215}
WORDS = {"billing": "card charged twice refund invoice", "crash": "app does not start freezes error"}
# One process for all commands of a section: to import torch anew for each takes longer than what they do.
DRIVER = """
import json, sys
from lit_fed.cli import main
for args in json.load(sys.stdin):
    try:
        code = main(args)
    except SystemExit as stop:
        code = stop.code
    if code:
        sys.exit(f"{args}: {code}")
"""


def blocks(section: str, language: str) -> str:
    """The code of a section in a language."""
    text = PAGE.read_text("utf-8").partition(f"## {section}\n")[2].partition("\n## ")[0]
    found = re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
    assert found
    return "".join(found)


def do_as_told(section: str, folder: Path, site: Path) -> str:
    yaml = blocks(section, "yaml").replace(HUB_ID, str(folder / "encoder"))  # there is no network here
    name = re.match(r"# (\w+\.yaml)\n", yaml)
    assert name is not None
    (folder / name[1]).write_text(yaml)
    commands = [shlex.split(line, comments=True) for line in blocks(section, "bash").splitlines()]
    assert {command[0] for command in commands} == {"lit-fed"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps([command[1:] for command in commands]),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_pictures_in_folders(site: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for label, grey in GREYS.items():
        (tmp_path / "flowers" / label).mkdir(parents=True)
        for i in range(30):
            noise = random.integers(-25, 25, (40, 48, 3))
            Image.fromarray((grey + noise).astype(np.uint8)).save(tmp_path / "flowers" / label / f"{i}.jpg")
    (tmp_path / "new").mkdir()
    for label, grey in GREYS.items():
        Image.new("RGB", (20, 20), (grey, grey, grey)).save(tmp_path / "new" / f"{label}.png")
    do_as_told("Pictures in folders", tmp_path, site)
    assert (tmp_path / "who_holds_what.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "runs/flowers/version_0/report.html").is_file()
    with open(tmp_path / "predictions.csv", newline="") as file:
        predicted = {Path(row["file"]).stem: row["prediction"] for row in csv.DictReader(file)}
    assert predicted == {label: label for label in GREYS}  # three greys are told apart in five rounds
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(tmp_path / "flower_model")
    assert model.config.id2label == dict(enumerate(GREYS))
    assert "# FedAvg: the model for new clients" in (tmp_path / "flower_model/README.md").read_text()


def test_texts_in_a_table(site: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    write_encoder(tmp_path / "encoder")
    rows = []
    for i in range(90):
        topic = ("billing", "crash")[i % 2]
        message = " ".join(random.choice(WORDS[topic].split(), 3))
        rows.append({"message": message, "topic": topic, "team": ("berlin", "lima", "oslo")[i // 2 % 3]})
    (tmp_path / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    new = [{"message": "refund invoice"}, {"message": "app freezes"}]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in new))
    said = do_as_told("Texts in a table", tmp_path, site)
    assert re.search(r"refund invoice +(billing|crash) +\d\.\d{3}", said)
    predicted = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [{"message": row["message"]} for row in predicted] == new
    assert all(set(row["probabilities"]) == {"billing", "crash"} for row in predicted)
    assert (tmp_path / "from_the_export.jsonl").read_text() == (tmp_path / "predictions.jsonl").read_text()
    card = (tmp_path / "berlin_adapter/README.md").read_text()
    assert "# Ditto: the adapter for client berlin" in card
    clients = {row["team"] for row in rows}
    assert {path.name for path in (tmp_path / "runs/tickets/version_0/adapters/clients").iterdir()} == clients


def write_encoder(folder: Path) -> None:
    """A text model in Hugging Face's layout, of random weights, that knows a few words."""
    from transformers import BertConfig, BertModel, BertTokenizer

    words = sorted({word for text in WORDS.values() for word in text.split()})
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    config = BertConfig(
        vocab_size=5 + len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
