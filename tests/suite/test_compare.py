"""Run folders side by side."""

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from lit_fed import FedAvg, compare
from lit_fed.cli import main
from lit_fed.core.errors import ConfigError
from tests.engine.tiny import Net, fit, points
from tests.suite.runs import CONFIG, summary, write_run


def changed(key: str, value: Any) -> dict[str, Any]:
    """`CONFIG` with one setting changed."""
    config = deepcopy(CONFIG)
    *path, last = key.split(".")
    inner: Any = config
    for name in path:
        inner = inner[name]
    inner[last] = value
    return config


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Two seeds of one experiment."""
    return [write_run(tmp_path / f"run_{seed}", summary({"all": 0.5 + seed / 10}, seed)) for seed in (0, 1)]


def test_runs_of_an_algorithm_are_its_seeds(two: list[Path], tmp_path: Path) -> None:
    other = write_run(
        tmp_path / "other", summary({"all": 0.1}, 0, "FedProx"), changed("algorithm.class_path", "FedProx")
    )
    (table,) = compare([*two, str(other)], baseline="FedProx").tables
    assert [(row.experiment, row.means) for row in table.rows] == [("FedAvg", {0: 0.5, 1: 0.6}), ("FedProx", {0: 0.1})]


def test_names_tell_runs_of_one_algorithm_apart(two: list[Path]) -> None:
    (table,) = compare(two, names=["one", "other"]).tables
    assert [row.experiment for row in table.rows] == ["one", "other"]


def test_what_federations_return_is_compared_as_their_folders(tmp_path: Path) -> None:
    results = [
        fit(algorithm, Net(), points(), tmp_path / "runs", rounds=1, seed=seed)
        for algorithm in (FedAvg(local_steps=1), FedAvg(local_steps=1, weights="uniform"))
        for seed in (0, 1)
    ]
    names = ["examples", "examples", "uniform", "uniform"]
    found = compare(results, names=names)
    values = [list(row.means.values()) for row in found.tables[0].rows]
    expected = [result.metrics["global/accuracy"] for result in results]
    assert values == [expected[:2], expected[2:]]
    assert [row["state_digest"] for row in found.rows()] == [result.summary["state_digest"] for result in results]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("data.partitioner.init_args.alpha", 0.1, "data.partitioner.init_args.alpha: 0.5 there, 0.1 here"),
        ("data.partitioner.init_args.seed", 7, "data.partitioner.init_args.seed: 0 there, 7 here"),
        ("data.source", "Digits", "data.source: 'Points' there, 'Digits' here"),
    ],
)
def test_different_data_do_not_compare(two: list[Path], tmp_path: Path, key: str, value: Any, said: str) -> None:
    other = write_run(tmp_path / "other", summary({"all": 0.1}, 0, "FedProx"), changed(key, value))
    with pytest.raises(ConfigError) as error:
        compare([*two, other])
    assert f"The runs were made on different data: {two[0]} (there) and {other} (here) differ in\n  {said}" in str(
        error.value
    )


def test_another_number_of_clients_is_other_data(two: list[Path], tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", {**summary({"all": 0.1}, 0, "FedProx"), "num_clients": 4})
    with pytest.raises(ConfigError, match="num_clients: 3 there, 4 here"):
        compare([*two, other])


def test_data_may_be_drawn_with_the_seed_and_batches_be_of_any_size(tmp_path: Path) -> None:
    runs = []
    for seed in (0, 1):
        for name in ("FedAvg", "FedProx"):
            config = changed("data.partitioner.init_args.seed", seed)
            config["data"]["batch_size"] = 8 if name == "FedAvg" else 16
            config["algorithm"] = {"class_path": name}
            runs.append(write_run(tmp_path / f"{name}{seed}", summary({"all": 0.5}, seed, name), config))
    assert len(compare(runs).tables[0].rows) == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("algorithm.init_args.local_steps", 2),
        ("model.init_args.lr", 0.2),
        ("federation.rounds", 3),
        ("data.batch_size", 4),
    ],
)
def test_seeds_of_one_experiment_have_the_same_settings(two: list[Path], tmp_path: Path, key: str, value: Any) -> None:
    other = write_run(tmp_path / "other", summary({"all": 0.1}, 2), changed(key, value))
    with pytest.raises(ConfigError) as error:
        compare([*two, other])
    assert "The runs of FedAvg were made with different settings" in str(error.value)
    assert f"{key}: " in str(error.value)
    compare([*two, other], names=["a", "a", "b"])


def test_where_a_run_was_made_does_not_matter(two: list[Path], tmp_path: Path) -> None:
    config = changed("federation.devices", 2)
    config["federation"]["run_dir"] = "elsewhere"
    other = write_run(tmp_path / "other", summary({"all": 0.1}, 2), config)
    assert list(compare([*two, other]).tables[0].rows[0].means) == [0, 1, 2]


def test_the_same_seed_twice(two: list[Path], tmp_path: Path) -> None:
    twin = write_run(tmp_path / "twin", summary({"all": 0.5}, 0))
    with pytest.raises(
        ConfigError, match=r"are both FedAvg with seed 0\. Give runs of different experiments different na"
    ):
        compare([*two, twin])


def test_what_is_no_finished_run(two: list[Path], tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "version_3", summary({"all": 0.5}))
    with pytest.raises(ConfigError, match=r"summary.json does not exist. Did you mean '.*runs/version_3'"):
        compare([tmp_path / "runs"])
    (two[1] / "summary.json").write_text("{")
    with pytest.raises(ConfigError, match="run_1 is damaged"):
        compare(two)
    with pytest.raises(ConfigError, match="Expected `runs` to be run folders, but got none"):
        compare([])


def test_names_and_baseline_that_do_not_fit(two: list[Path]) -> None:
    with pytest.raises(ConfigError, match="Expected `names` to be one for each of the 2 runs, but got 1"):
        compare(two, names=["one"])
    with pytest.raises(ConfigError, match="Expected `baseline` to be one of FedAvg, but got 'FedRA'"):
        compare(two, baseline="FedRA")


def test_the_command_prints_and_writes(two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "new" / "folder"
    runs = [str(run) for run in two]
    assert main(["compare", *runs, "--name", "a", "b", "--baseline", "a", "--metric", "accuracy", "--to", str(to)]) == 0
    said = capsys.readouterr().out
    assert "vs a" in said
    assert f"table.md, table.csv, figure.png: {to}" in said
    assert sorted(path.name for path in to.iterdir()) == ["figure.png", "table.csv", "table.md"]
    assert "| b |" in (to / "table.md").read_text()
    assert main(["compare", *runs, "--names"]) == 2
    assert "Expected no further arguments, but got --names. See `lit-fed compare --help`." in capsys.readouterr().err


def test_comparing_waits_for_no_training_library(two: list[Path]) -> None:
    code = (
        "import sys; from lit_fed.cli import main; code = main(['compare', *sys.argv[1:]]);"
        "sys.exit(', '.join(n for n in ('torch', 'lightning', 'peft', 'matplotlib') if n in sys.modules) or code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, two)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((two[0] / "summary.json").read_text())["algorithm"] in done.stdout
