"""Commands from arguments to files, with a module and data of a user's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_fed.cli import main
from lit_fed.cli.predictions import rows_of

CONFIG = """
model: tests.engine.tiny.Net
data:
  source: {class_path: tests.engine.tiny.Points, init_args: {num_examples: 48}}
  partitioner: {class_path: IidPartitioner, init_args: {num_partitions: 3}}
  val_fraction: 0.25
  test_fraction: 0.25
algorithm: {class_path: FedAvg, init_args: {local_steps: 1}}
federation: {rounds: 1, accelerator: cpu, progress: false, pictures: false}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "c.yaml").write_text(f"{CONFIG.rstrip()[:-1]}, run_dir: {tmp_path / 'runs'}}}\n")
    return str(tmp_path / "c.yaml")


def digest(run: Path) -> str:
    return json.loads((run / "summary.json").read_text())["state_digest"]


def test_fit_then_fit_its_own_record(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "runs" / "version_0", tmp_path / "runs" / "version_1"
    assert main(["fit", "--config", config, "--seed_everything", "7", "--algorithm.weights", "uniform"]) == 0
    said = capsys.readouterr().out
    assert f"run: {first}\n" in said
    assert f"state_digest: {digest(first)}\n" in said
    assert main(["fit", "--config", str(first / "config.yaml")]) == 0
    assert digest(second) == digest(first)
    assert (second / "config.yaml").read_text() == (first / "config.yaml").read_text()
    assert main(["fit", "--config", config]) == 0
    assert digest(tmp_path / "runs" / "version_2") != digest(first)  # the flags were no mere decoration


def test_a_dry_run_names_no_folder(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", config, "--federation.dry_run", "true", "--federation.progress", "true"]) == 0
    said = capsys.readouterr().out
    assert "nothing was trained or written" in said
    assert "\nrun: " not in said
    assert "state_digest" not in said
    assert not (tmp_path / "runs").exists()


def test_continue(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = ["--ckpt_path", "last"]
    assert main(["fit", "--config", config, *last]) == 0
    assert "starting from the beginning" in capsys.readouterr().out
    assert main(["fit", "--config", config, *last, "--federation.rounds", "2"]) == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["version_0"]
    assert main(["fit", "--config", config, "--federation.rounds", "2"]) == 0
    assert digest(tmp_path / "runs" / "version_0") == digest(tmp_path / "runs" / "version_1")


def test_use_a_stored_run(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "runs" / "version_0"
    assert main(["fit", "--config", config]) == 0
    metrics = json.loads((run / "summary.json").read_text())["metrics"]
    capsys.readouterr()
    assert main(["test", "--run", str(run)]) == 0
    rows = dict(line.split() for line in capsys.readouterr().out.splitlines() if "/" in line)
    name = next(name for name in metrics if name.startswith("global/") and name.count("/") == 1)
    assert rows[name] == f"{metrics[name]:.4f}"
    assert main(["validate", "--run", str(run), "--federation.devices", "1"]) == 0
    assert "personal/" in capsys.readouterr().out


def test_predict(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, to = tmp_path / "runs" / "version_0", tmp_path / "p.jsonl"
    model = ["--model", "tests.cli.small.Predicting"]
    assert main(["fit", "--config", config, *model]) == 0
    assert main(["predict", "--run", str(run)]) == 0
    written = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert len(written) == 12  # the test set of `Points`
    assert all(set(row) == {"probs", "label"} and sum(row["probs"]) == pytest.approx(1) for row in written)
    assert main(["predict", "--run", str(run), "--client", "01", "--to", str(to)]) == 0
    assert [json.loads(line) for line in to.read_text().splitlines()] == written  # FedAvg serves everyone the same
    assert main(["predict", "--run", str(run), "--client", "nobody"]) == 2


def test_partition_trains_nothing(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "p.png"
    # A model that cannot even be built does not matter: it is not.
    assert (
        main(["partition", "--config", config, "--model", "tests.cli.small.Unbuildable", "--picture", str(picture)])
        == 0
    )
    assert "3 clients" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "runs").exists()


def test_print_config_is_a_config(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", config, "--print_config"])
    assert stop.value.code == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert main(["fit", "--config", str(tmp_path / "printed.yaml")]) == 0
    assert main(["fit", "--config", config]) == 0
    assert digest(tmp_path / "runs" / "version_0") == digest(tmp_path / "runs" / "version_1")


def test_full_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help_all"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{key}" in shown for key in ("federation.rounds", "data.source", "algorithm", "model.help", "config"))
    assert "--federation.seed" not in shown


@pytest.mark.slow
def test_two_processes_speak_once(config: str, tmp_path: Path) -> None:
    args = ["-m", "lit_fed", "fit", "--config", config, "--federation.progress", "true"]
    outputs = []
    for devices in ("1", "2"):
        done = subprocess.run(
            [sys.executable, *args, "--federation.devices", devices],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert [output.count("state_digest") for output in outputs] == [1, 1]
    assert [output.count("total") for output in outputs] == [1, 1]  # the last row of the final table
    assert digest(tmp_path / "runs" / "version_0") == digest(tmp_path / "runs" / "version_1")


def test_rows_of_what_a_module_predicts() -> None:
    import torch

    labels, probs = torch.tensor([1, 0]), torch.tensor([[0.5, 0.25], [0.25, 0.5]])
    assert list(rows_of(labels)) == [1, 0]
    assert list(rows_of(torch.tensor(3))) == [3]
    assert list(rows_of({"label": labels, "probs": probs})) == [
        {"label": 1, "probs": [0.5, 0.25]},
        {"label": 0, "probs": [0.25, 0.5]},
    ]
    assert list(rows_of(["some", "text"])) == ["some", "text"]
    assert list(rows_of("text")) == ["text"]
