"""An export of a client's mixture: predicted with in a fresh process, as its card says, without run and data."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_fed.cli import main
from tests.cli.test_predictions import CONFIG

MIXTURE = (
    "algorithm: {class_path: FedFMSL, init_args: {stage1_rounds: 1, schedule: all, start: 1, gate_width: 4,"
    " local_steps: 4, gate_lr: 0.1}}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``exported/`` of client 00, what the run predicts for ``new/`` as that client, and no run any more."""
    folder = tmp_path_factory.mktemp("mixed")
    random = np.random.default_rng(0)
    for label, grey in (("moon", 40), ("sun", 200)):
        (folder / "pictures" / label).mkdir(parents=True)
        for i in range(16):
            pixels = (grey + random.integers(-30, 30, (8, 8))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / label / f"{i}.png")
    (folder / "new").mkdir()
    for name, grey in (("dark", 30), ("dusk", 110), ("light", 210)):
        Image.new("L", (8, 8), grey).save(folder / "new" / f"{name}.png")
    config = re.sub("algorithm: .*", MIXTURE, CONFIG.replace("FOLDER", str(folder))).replace("rounds: 2", "rounds: 4")
    (folder / "c.yaml").write_text(config)
    assert main(["fit", "--config", str(folder / "c.yaml")]) == 0
    run = ["--run", str(folder / "runs" / "version_0")]
    for name, more in (("mixed", ["--client", "00"]), ("global", [])):
        given = ["--input", str(folder / "new"), "--to", str(folder / f"{name}.jsonl")]
        assert main(["predict", *run, *more, *given]) == 0
    assert main(["export", run[1], "--client", "00", "--to", str(folder / "exported")]) == 0
    shutil.rmtree(folder / "runs")
    shutil.rmtree(folder / "pictures")
    return folder


def probabilities(file: Path) -> list[list[float]]:
    return [list(json.loads(line)["probabilities"].values()) for line in file.read_text().splitlines()]


def test_the_cards_python_in_a_fresh_process(folder: Path) -> None:
    card = (folder / "exported" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    lines = code.strip().splitlines()
    assert len([line for line in lines if line]) <= 5
    assert lines[-1] == 'print(module.predict_step(batch)["probs"])'
    code = code.replace("[image]", "images").replace('print(module.predict_step(batch)["probs"])', "")
    script = (
        f"images = [{str(folder / 'new')!r} + f'/{{name}}.png' for name in ('dark', 'dusk', 'light')]\n{code}\n"
        "import json\nprint(json.dumps(module.predict_step(batch)['probs'].tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    expected = probabilities(folder / "mixed.jsonl")
    assert found == expected
    assert np.abs(np.subtract(found, probabilities(folder / "global.jsonl"))).max() > 1e-3  # or the gate were nothing


def test_the_cards_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = (folder / "exported" / "README.md").read_text()
    assert f"lit-fed predict --run {folder / 'exported'} --input FILE" in card
    given = ["predict", "--run", str(folder / "exported"), "--input", str(folder / "new")]
    assert main([*given, "--to", str(tmp_path / "p.jsonl")]) == 0
    assert (tmp_path / "p.jsonl").read_text() == (folder / "mixed.jsonl").read_text()
    assert main([*given, "--client", "00"]) == 2
    assert "Expected no `client` with an export" in capsys.readouterr().err
    assert main(["predict", "--run", str(folder / "exported")]) == 2
    assert "`--input`" in capsys.readouterr().err
