"""``lit-fed predict --input``: pictures that no run has seen, from files to a table, JSON lines and CSV."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lit_fed.cli import main
from lit_fed.cli.predictions import as_table, written
from lit_fed.modules import ImageClassifier

CONFIG = """
model:
  class_path: ImageClassifier
  init_args:
    num_labels: 2
    config: {model_type: vit, hidden_size: 8, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 16,
      image_size: 8, patch_size: 4, num_channels: 1}
    lora: {r: 2, target_modules: [q_proj, v_proj]}
    optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.02}}
data:
  source:
    class_path: HubData
    init_args: {path: FOLDER/pictures, image_column: image, label_column: label, test_fraction: 0.25}
  partitioner: {class_path: IidPartitioner, init_args: {num_partitions: 2}}
  batch_size: 8
algorithm: {class_path: Ditto, init_args: {local_epochs: 1}}
federation: {rounds: 2, accelerator: cpu, progress: false, pictures: false, threads: 1, run_dir: FOLDER/runs}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose training data are gone, and two new pictures."""
    folder = tmp_path_factory.mktemp("served")
    random = np.random.default_rng(0)
    for label, grey in (("moon", 40), ("sun", 200)):
        (folder / "pictures" / label).mkdir(parents=True)
        for i in range(24):
            pixels = (grey + random.integers(-30, 30, (8, 8))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / label / f"{i}.png")
    (folder / "c.yaml").write_text(CONFIG.replace("FOLDER", str(folder)))
    assert main(["fit", "--config", str(folder / "c.yaml")]) == 0
    shutil.rmtree(folder / "pictures")
    (folder / "new").mkdir()
    for name, grey in (("dark", 30), ("light", 210)):
        Image.new("L", (8, 8), grey).save(folder / "new" / f"{name}.png")
    return folder


def predict(folder: Path, *more: str) -> int:
    return main(["predict", "--run", str(folder / "runs" / "version_0"), *more])


def test_files_in_files_out(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "p.jsonl"
    assert predict(folder, "--input", str(folder / "new"), "--client", "00", "--to", str(to)) == 0
    assert capsys.readouterr().out == f"2 predictions: {to}\n"
    rows = [json.loads(line) for line in to.read_text().splitlines()]
    assert [row["file"] for row in rows] == [str(folder / "new" / f"{name}.png") for name in ("dark", "light")]
    assert [row["prediction"] for row in rows] == ["moon", "sun"]  # the folders' names, not 0 and 1
    for row in rows:
        assert set(row) == {"file", "prediction", "probability", "probabilities"}
        assert row["probability"] == row["probabilities"][row["prediction"]] == max(row["probabilities"].values())
        assert sum(row["probabilities"].values()) == pytest.approx(1)
    assert predict(folder, "--input", str(folder / "new"), "--client", "00", "--to", str(tmp_path / "p.csv")) == 0
    with open(tmp_path / "p.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["prediction"] for row in table] == ["moon", "sun"]
    assert [float(row["probability"]) for row in table] == [row["probability"] for row in rows]
    assert [json.loads(row["probabilities"]) for row in table] == [row["probabilities"] for row in rows]


def test_a_table_in_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(folder, "--input", str(folder / "new" / "dark.png"), str(folder / "new" / "light.png")) == 0
    shown = capsys.readouterr().out
    assert "probability" in shown
    assert "light.png" in shown
    assert "probabilities" not in shown


def test_what_the_module_makes_of_a_picture_is_what_is_predicted(folder: Path, tmp_path: Path) -> None:
    """Against Lightning's own module, with the client's adapter from its PEFT folder."""
    from lit_fed.adapters import load_adapter
    from lit_fed.cli.settings import Settings
    from lit_fed.core.seeding import isolated_rng

    run = folder / "runs" / "version_0"
    to = tmp_path / "p.jsonl"
    assert predict(folder, "--input", str(folder / "new"), "--client", "01", "--to", str(to)) == 0
    module = Settings(["--config", str(run / "config.yaml")]).module()
    assert isinstance(module, ImageClassifier)
    with isolated_rng(0, "init"):
        module.configure_model()
    load_adapter(module, run / "adapters" / "clients" / "01")
    pixels = torch.tensor([30 / 127.5 - 1, 210 / 127.5 - 1]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    with torch.no_grad():
        probs = module.eval().predict_step({"pixel_values": pixels})["probs"]
    found = [list(json.loads(line)["probabilities"].values()) for line in to.read_text().splitlines()]
    torch.testing.assert_close(torch.tensor(found), probs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "there is no"),
        (lambda path: path.write_text("no picture"), "cannot identify image file"),
        (
            lambda path: path.with_suffix(".jsonl").write_text('{"p": "x"}'),
            "Expected the data to have a column `image`",
        ),
    ],
)
def test_what_cannot_be_predicted(folder: Path, tmp_path: Path, make, said: str, capsys) -> None:
    path = tmp_path / "x.png"
    make(path)
    given = next(tmp_path.iterdir(), path)
    assert predict(folder, "--input", str(given)) == 2
    assert said in capsys.readouterr().err
    assert predict(folder, "--input", str(folder / "new"), "--client", "nobody") == 2
    assert "Expected `client` to be one of ['00', '01']" in capsys.readouterr().err


def test_a_module_that_cannot_read_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.cli.test_commands import CONFIG as POINTS

    (tmp_path / "c.yaml").write_text(f"{POINTS.rstrip()[:-1]}, run_dir: {tmp_path / 'runs'}}}\n")
    assert main(["fit", "--config", str(tmp_path / "c.yaml")]) == 0
    (tmp_path / "x.txt").write_text("text")
    args = ["predict", "--run", str(tmp_path / "runs" / "version_0"), "--input", str(tmp_path / "x.txt")]
    assert main(args) == 2
    assert "Expected the module to offer `encode(rows)`" in capsys.readouterr().err


def test_what_other_modules_predict_is_kept_as_it_is() -> None:
    rows = [({"text": "a\nb"}, {"loss": 0.5, "labels": [1, 2]}), ({"text": "c"}, {"loss": 1.5, "labels": [3]})]
    assert written(rows, Path("x.jsonl")) == (
        '{"text": "a\\nb", "loss": 0.5, "labels": [1, 2]}\n{"text": "c", "loss": 1.5, "labels": [3]}\n'
    )
    assert written(rows, Path("x.csv")) == 'text,loss,labels\n"a\nb",0.5,"[1, 2]"\nc,1.5,[3]\n'
    assert [column.header for column in as_table(rows).columns] == ["text", "loss"]
    assert as_table(rows * 30).caption == "the first 40 of 60; `--to FILE` writes all"


def test_of_a_long_path_the_end_is_shown_and_of_a_long_text_the_beginning() -> None:
    rows = [({"file": f"/{'folder/' * 20}light.png", "text": f"first {'word ' * 20}"}, {"loss": 0.5})]
    path, text, _ = (next(iter(column.cells)).plain for column in as_table(rows).columns)
    assert len(path) == len(text) == 60
    assert path.startswith("…")
    assert path.endswith("/light.png")
    assert text.startswith("first ")
    assert text.endswith("…")
