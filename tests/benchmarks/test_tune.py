"""What tuning compares, and which runs it makes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.cli import OptimizerCallable

from benchmarks import tune
from benchmarks.tune import best, first_runs, mean_over_clients
from lit_fed.cli.suite_file import Variant
from lit_fed.cli.suite_runs import Run
from lit_fed.core.errors import ConfigError
from tests.engine.tiny import Net

SCORES = {
    "personal/loss_mean": 0.7, "personal/loss_worst": 0.9, "personal/accuracy_mean": 0.5, "personal/accuracy_std": 0.1,
}  # fmt: skip


class Tuned(Net):
    """Learns at the rate of its optimizer's settings, as lit_fed's own modules do."""

    def __init__(self, optimizer: OptimizerCallable = torch.optim.SGD) -> None:
        super().__init__(optimizer=optimizer)

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.head.parameters())


@pytest.mark.parametrize(
    ("metric", "expected"),
    [(None, 0.5), ("accuracy", 0.5), ("personal/accuracy", 0.5), ("personal/loss", 0.7), ("loss", 0.7)],
)
def test_the_score_is_the_mean_of_the_suites_metric(metric: str | None, expected: float) -> None:
    assert mean_over_clients(SCORES, metric) == expected


def test_a_metric_that_clients_do_not_report_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`metric` .*\['loss', 'accuracy'\], but got 'perplexity'"):
        mean_over_clients(SCORES, "personal/perplexity")


def test_the_best_is_the_lowest_of_losses_and_the_highest_of_all_else() -> None:
    scores = {"1e-3": 0.4, "2e-3": 0.6, "4e-3": 0.6, "8e-3": 0.4}
    assert best(scores, "personal/accuracy") == best(scores, None) == "2e-3"  # the first of equals
    assert best(scores, "personal/loss") == "1e-3"


def test_an_experiment_is_run_once_in_its_first_setting(tmp_path: Path) -> None:
    def run(experiment: str, setting: str, seed: int) -> Run:
        return Run("", Variant(experiment, setting, ()), {"seed_everything": seed}, tmp_path)

    runs = [run("A", "x", 1), run("A", "x", 0), run("A", "y", 0), run("B", "y", 0), run("C", "x", 0)]
    assert first_runs(runs, 0, ["B", "A"]) == {"A": runs[1], "B": runs[3]}


@pytest.mark.slow
def test_the_rate_that_learns_is_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Every experiment that is named, with both rates, in another process."""
    base = {
        "model": {
            "class_path": "tests.benchmarks.test_tune.Tuned",
            "init_args": {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 1.0}}},
        },
        "data": {"source": "tests.engine.tiny.Points", "val_fraction": 0.25, "test_fraction": 0.25},
        "algorithm": {"class_path": "FedAvg", "init_args": {"local_steps": 5}},
        "federation": {"accelerator": "cpu"},
    }
    experiments = {"FedAvg": {}, "Local": {"algorithm": "Local"}, "Left out": {"algorithm": "FedProx"}}
    suite = {"base": "base.yaml", "run_dir": str(tmp_path), "seeds": [3, 0], "experiments": experiments}
    for name, content in {"base": base, "suite": suite}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    file = tmp_path / "found.json"
    monkeypatch.setattr(
        sys, "argv",
        ["tune", "--suite", str(tmp_path / "suite.yaml"), "--lr", "1e-9", "0.1", "--rounds", "2", "--threads", "1",
         "--only", "FedAvg", "Local", "--json", str(file), "--data.val_fraction", "0.5"],
    )  # fmt: skip
    tune.main()
    found = json.loads(file.read_text())
    assert {name: list(tried) for name, tried in found.items()} == {
        name: ["1e-9", "0.1"] for name in ("FedAvg", "Local")
    }
    assert all(tried["0.1"] > tried["1e-9"] for tried in found.values())
    assert capsys.readouterr().out.count("best 0.1") == 2
