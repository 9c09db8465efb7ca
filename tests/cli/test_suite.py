"""Suites from their file to their table: in this process, one after another, and once as a user has them."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_fed.cli import main
from lit_fed.cli import suite as suite_module
from lit_fed.cli.places import environment_of, gpus_of
from lit_fed.cli.settings import Settings
from lit_fed.cli.suite_file import Variant, read_suite
from lit_fed.cli.suite_runs import Run as SuiteRun
from lit_fed.cli.suite_runs import resolve
from lit_fed.engine.run import Run
from lit_fed.suite.processes import Ended, Job
from tests.conftest import REPOSITORY
from tests.stand_ins import files_here

BASE: dict[str, Any] = {
    "seed_everything": 5,  # the suite's seeds take its place
    "model": "tests.engine.tiny.Net",
    "data": {
        "source": {"class_path": "tests.engine.tiny.Points", "init_args": {"num_examples": 48}},
        "partitioner": {"class_path": "IidPartitioner", "init_args": {"num_partitions": 3}},
        "val_fraction": 0.25,
        "test_fraction": 0.25,
    },
    "algorithm": {"class_path": "FedAvg", "init_args": {"local_steps": 2}},
    "federation": {"rounds": 2, "accelerator": "cpu", "pictures": False},
}
SUITE: dict[str, Any] = {
    "base": "base.yaml",
    "seeds": [0, 1, 2],
    "baseline": "FedAvg",
    "experiments": {
        "FedAvg": {"algorithm": "FedAvg"},
        "Prox": {"algorithm": {"class_path": "FedProx", "init_args": {"mu": 0.5}}},
        "Alone": {"algorithm": "Local"},
    },
}
KILLED = 5  # the fifth run is stopped after its first round


class InProcess:
    """`Processes` without processes: the same commands, one after another, in this one."""

    asked: list[str]
    """Names of the jobs that were run, of all suites of a test."""
    kill_at: int | None

    def __init__(self, jobs: list[Job], *_: object) -> None:
        self._jobs = list(jobs)
        self.running: list[tuple[Job, float]] = []

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    @property
    def busy(self) -> bool:
        return bool(self._jobs)

    def step(self) -> list[Ended]:
        job = self._jobs.pop(0)
        self.asked.append(job.name)
        killed = len(self.asked) == self.kill_at
        with open(job.log, "a") as log, redirect_stdout(log), redirect_stderr(log), dying() if killed else alive():
            code = main(list(job.command[3:]))
        if killed:
            raise KeyboardInterrupt
        return [Ended(job, code, 0.5)]


@contextmanager
def alive() -> Iterator[None]:
    yield


@contextmanager
def dying() -> Iterator[None]:
    """A run that does not survive its first checkpoint."""
    whole = Run._checkpoint

    def last(self: Run, *args: Any) -> None:
        whole(self, *args)
        raise KeyboardInterrupt

    Run._checkpoint = last
    try:
        yield
    finally:
        Run._checkpoint = whole


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> type[InProcess]:
    class Fresh(InProcess):
        asked: list[str] = []  # noqa: RUF012 (a class of this test alone)
        kill_at = None

    monkeypatch.setattr(suite_module, "Processes", Fresh)
    return Fresh


def write(folder: Path, suite: dict[str, Any] = SUITE, base: dict[str, Any] = BASE) -> Path:
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    (folder / "suite.yaml").write_text(yaml.safe_dump({"run_dir": str(folder / "runs"), **suite}, sort_keys=False))
    return folder / "suite.yaml"


def run(suite: Path, *args: str) -> int:
    return main(["suite", "--config", str(suite), *args])


def table(folder: Path) -> list[dict[str, str]]:
    """The long table, but for what is of the machine."""
    with open(folder / "table.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in ("train_s", "path")} for row in csv.DictReader(file)]


def test_killed_and_resumed_ends_in_the_same_table(
    here: type[InProcess], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = write(tmp_path)
    assert run(suite, "--run_dir", str(tmp_path / "whole")) == 0
    whole = table(tmp_path / "whole")
    assert [(row["experiment"], row["seed"]) for row in whole] == [
        (name, str(seed)) for name in SUITE["experiments"] for seed in SUITE["seeds"]
    ]
    assert len({row["state_digest"] for row in whole}) == 9  # neither settings nor seeds were mere decoration

    here.asked, here.kill_at = [], KILLED
    capsys.readouterr()
    assert run(suite) == 130
    assert "interrupted. The same command continues from the last checkpoint." in capsys.readouterr().err
    assert not (tmp_path / "runs" / "table.md").exists()
    broken = here.asked[-1]
    assert not (tmp_path / "runs" / broken / "version_0" / "summary.json").exists()

    here.asked, here.kill_at = [], None
    assert run(suite) == 0
    assert len(here.asked) == 9 - (KILLED - 1)
    assert here.asked[0] == broken
    assert table(tmp_path / "runs") == whole
    log = (tmp_path / "runs" / broken / "log.txt").read_text()
    assert [log.count(f"round {number}/2") for number in (1, 2)] == [
        1,
        1,
    ]  # the second start made the second round only

    here.asked = []
    said = capsys.readouterr().out
    assert "[9/9]" in said
    before = (tmp_path / "runs" / "table.md").read_text()
    assert run(suite) == 0
    assert here.asked == []
    assert capsys.readouterr().out.count("finished before") == 9
    assert (tmp_path / "runs" / "table.md").read_text() == before
    assert (tmp_path / "runs" / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_failing_run_stops_no_other_and_is_reported(
    here: type[InProcess], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {"Bad": {"model": "tests.cli.small.Failing"}}
    suite = write(tmp_path, {**SUITE, "seeds": [0], "experiments": {**bad, "FedAvg": {}, "Prox": {}}})
    assert run(suite) == 1
    captured = capsys.readouterr()
    log = tmp_path / "runs" / "Bad" / "seed_0" / "log.txt"
    assert f"[1/3] Bad/seed_0  FAILED, see {log}" in captured.out
    assert "1 of the suite's runs failed. The same command tries them again." in captured.err
    assert f"Bad/seed_0 (exit code 1), at the end of {log}:" in captured.err
    assert "ArithmeticError: the sums do not add up" in captured.err
    assert [row["experiment"] for row in table(tmp_path / "runs")] == ["FedAvg", "Prox"]
    assert "- Not finished, and so not here: Bad/seed_0." in (tmp_path / "runs" / "table.md").read_text()
    here.asked = []
    assert run(suite) == 1
    assert here.asked == ["Bad/seed_0"]


def test_a_changed_configuration_of_a_finished_run_is_refused(
    here: type[InProcess], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {**SUITE, "seeds": [0]}
    assert run(write(tmp_path, few)) == 0
    here.asked = []
    capsys.readouterr()
    quiet = {**BASE, "federation": {**BASE["federation"], "progress": False}}
    assert run(write(tmp_path, few, quiet)) == 0  # what is shown changes no result
    longer = {**BASE, "federation": {**BASE["federation"], "rounds": 3}}
    assert run(write(tmp_path, few, longer)) == 2
    said = capsys.readouterr().err
    path = tmp_path / "runs" / "FedAvg" / "seed_0"
    assert (
        f"{path / 'version_0'} was made with other settings (there) than the suite has now (here), and so were 2"
        in said
    )
    assert "\n  federation.rounds: 2 there, 3 here\n" in said
    assert f"Choose a new `run_dir`, restore these settings, or delete {path}." in said
    assert here.asked == []


def test_some_of_it(here: type[InProcess], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = write(tmp_path)
    assert run(suite, "--only", "Prox", "FedAvg", "--seeds", "7,3") == 0
    assert here.asked == ["FedAvg/seed_7", "Prox/seed_7", "FedAvg/seed_3", "Prox/seed_3"]
    here.asked = []
    assert run(suite, "--only", "Alone", "--seeds", "7") == 0
    assert here.asked == ["Alone/seed_7"]
    assert [row["experiment"] for row in table(tmp_path / "runs")] == ["FedAvg", "Prox", "Alone"]
    capsys.readouterr()
    assert run(suite, "--only", "prox") == 2
    assert (
        "Expected `--only` to name experiments, one of Alone, FedAvg, Prox, but got 'prox'." in capsys.readouterr().err
    )


def test_later_layers_win_and_an_algorithm_keeps_what_it_takes(tmp_path: Path) -> None:
    base = {**BASE, "algorithm": {"class_path": "FedRA", "init_args": {"capacities": [1, 2, 3], "local_steps": 4}}}
    suite = {
        "base": "base.yaml",
        "seeds": [0, 1],
        "settings": {
            "usual": None,
            "poor": {
                "algorithm": {"init_args": {"capacities": 1}},
                "experiments": {"Repair": {"algorithm": {"init_args": {"coverage": "deal"}}}},
            },
        },
        "experiments": {
            "FedRA": None,
            "Repair": {"algorithm": {"init_args": {"coverage": "repair"}}, "federation": {"rounds": 9}},
            "Inclusive": {"algorithm": "InclusiveFL"},
            "AllLarge": {"algorithm": "AllLarge", "settings": "usual"},
        },
    }
    runs = {run.name: run.config for run in resolve(read_suite(write(tmp_path, suite, base)))}
    assert list(runs)[:3] == ["usual/FedRA/seed_0", "usual/Repair/seed_0", "usual/Inclusive/seed_0"]
    assert len(runs) == 14
    chosen = {name: config["algorithm"]["init_args"] for name, config in runs.items() if name.endswith("seed_1")}
    keys = ("capacities", "coverage", "local_steps")
    assert {name: tuple(own.get(key) for key in keys) for name, own in chosen.items()} == {
        "usual/FedRA/seed_1": ([1, 2, 3], "keep", 4),
        "usual/Repair/seed_1": ([1, 2, 3], "repair", 4),
        "usual/Inclusive/seed_1": ([1, 2, 3], None, 4),
        "usual/AllLarge/seed_1": (None, None, 4),
        "poor/FedRA/seed_1": (1, "keep", 4),
        "poor/Repair/seed_1": (1, "deal", 4),
        "poor/Inclusive/seed_1": (1, None, 4),
    }
    assert chosen["usual/AllLarge/seed_1"]["weights"] == "uniform"  # its own default, not FedAvg's
    repair = runs["poor/Repair/seed_1"]
    assert (repair["seed_everything"], repair["federation"]["rounds"]) == (1, 9)
    assert repair["federation"]["run_dir"] == str(tmp_path / "runs" / "poor" / "Repair" / "seed_1")


def test_settings_of_the_command_line_are_the_last_layer_of_every_run(tmp_path: Path) -> None:
    suite = {**SUITE, "experiments": {"A": {"federation": {"rounds": 9}}, "B": {}}, "baseline": None}
    given = read_suite(write(tmp_path, suite), given=["--federation.rounds=7", "--algorithm.local_steps", "3"])
    runs = [run.config for run in resolve(given)]
    assert runs
    assert {run["federation"]["rounds"] for run in runs} == {7}
    assert {run["algorithm"]["init_args"]["local_steps"] for run in runs} == {3}


def test_a_mistake_on_the_command_line_is_found_too(
    here: type[InProcess], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, {**SUITE, "baseline": None})
    assert main(["suite", "--config", str(path), "--federation.round=3"]) == 2
    assert "There is no setting `federation.round`. Did you mean 'rounds'?" in capsys.readouterr().err
    assert main(["suite", "--config", str(path), "somewhere"]) == 2
    assert "somewhere" in capsys.readouterr().err
    assert here.asked == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"experiments": {"A": {"federation": {"round": 3}}, "B": {}}},
            "Experiment 'A': There is no setting `federation.round`. Did you mean 'rounds'?",
        ),
        (
            {
                "settings": {"x": {}, "y": {"data": {"batchsize": 3}}},
                "experiments": {"A": {}, "B": {"settings": ["x"]}},
            },
            "Experiment 'A' in 'y': There is no setting `data.batchsize`. Did you mean 'batch_size'?",
        ),
        (
            {
                "settings": {"y": {"experiments": {"A": {"algorithm": {"init_args": {"mu": 3}}}}}},
                "experiments": {"A": {}},
            },
            "Experiment 'A': There is no setting `algorithm.mu`.",
        ),
        (
            {"experiments": {"A": {"algorithm": {"init_args": {"local_steps": 0}}}, "B": {}}},
            "Experiment 'A': Expected `algorithm.local_steps` to be >= 1, but got 0.",
        ),
        (
            {"experiments": {"A": {}, "B": {"data": {"partitioner": {"init_args": {"num_partitions": 4}}}}}},
            "Experiment 'B': its data differ from those of 'A' (there):\n"
            "  data.partitioner.init_args.num_partitions: 3 there, 4 here\nMake it a setting.",
        ),
        (
            {"experiments": {"A": {"federation": {"dry_run": True}}, "B": {}}},
            "Experiment 'A': Expected `federation.dry_run` to be false",
        ),
        (
            {"settings": {"x": {"model": "nothing.There"}}, "experiments": {"A": {}, "B": {}}},
            "Every experiment: Expected",
        ),
    ],
)
def test_mistakes_are_found_before_anything_runs(
    changes: dict[str, Any],
    said: str,
    here: type[InProcess],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    suite = {**SUITE, "baseline": None, **changes}
    assert run(write(tmp_path, suite)) == 2
    assert f"lit-fed: error: {said}" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert here.asked == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["suite"], "the following arguments are required: --config"),
        (["suite", "--config", "x.yaml", "--processes", "0"], "--processes: expected an integer >= 1, but got '0'"),
        (
            ["suite", "--config", "x.yaml", "--seeds", "a"],
            "--seeds: expected integers with commas between them, but got 'a'",
        ),
        (["suite", "--config", "nowhere.yaml"], "Expected `config` to be the file of a suite, but got 'nowhere.yaml'"),
        (["compare"], "the following arguments are required: RUN"),
    ],
)
def test_wrong_arguments(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs" / "suites").glob("*.yaml")), ids=lambda path: path.name)
def test_the_suites_that_come_along_are_in_order(path: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    base = yaml.safe_load((path.parent / yaml.safe_load(path.read_text())["base"]).read_text())
    given: list[str] = []
    if isinstance(base["data"]["source"], dict):  # files of the user
        given = files_here(base, request.getfixturevalue("shared_data"), tmp_path / "encoder")
    suite = read_suite(path, given=given)
    runs = resolve(suite)
    assert len(runs) == len(suite.variants) * len(suite.seeds)
    for resolved in {run.variant.setting: run for run in runs}.values():
        Settings(["--config", yaml.safe_dump(resolved.config)]).data().setup_clients()  # there is a partition as asked
    if path.stem.startswith(("fdlora", "fedfmsl")):
        assert len({num_steps(run.config) for run in runs}) == 1  # the comparison is fair


SECOND = {"Ditto": "personal_steps", "FedRep": "head_steps"}
"""Of methods with two trainings in a turn: how long the second is; as long as the first, if that is not said."""


def num_steps(config: dict[str, Any]) -> int:
    """Optimizer steps of a client that is in every round."""
    name, settings = config["algorithm"]["class_path"].rpartition(".")[2], config["algorithm"]["init_args"]
    first, rounds = settings["local_steps"], config["federation"]["rounds"]
    if name == "FDLoRA":  # the last round finds the weights of the fusion
        assert rounds == settings["federated_rounds"] + 2
        return first * (rounds - 1)
    second = SECOND.get(name) or ("personal_steps" if settings.get("variant") == "T" else None)
    return rounds * (first + (settings[second] or first if second else 0))


@pytest.mark.slow
def test_real_processes_killed_for_real(here: type[InProcess], tmp_path: Path) -> None:
    """A long and a short run side by side; the suite is killed in the midst of the long one."""
    experiments = {"Long": {"federation": {"rounds": 60}}, "Short": {"federation": {"rounds": 1}}}
    suite = write(tmp_path, {"base": "base.yaml", "seeds": [0], "experiments": experiments})
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "lit_fed", "suite", "--config", str(suite), "--processes", "2"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    rounds = tmp_path / "runs" / "Long" / "seed_0" / "version_0" / "metrics.csv"
    deadline = time.monotonic() + 600  # a busy machine takes minutes to start three processes
    while process.poll() is None and time.monotonic() < deadline and not rounds.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    said = process.communicate()[0].decode()
    assert rounds.exists(), said
    assert "2 of 2 runs to do: 2 at a time, one thread each" in said
    assert not (rounds.parent / "summary.json").exists()

    assert run(suite) == 0  # resumed in this process
    resumed = {row["experiment"]: row["state_digest"] for row in table(tmp_path / "runs")}
    assert run(suite, "--run_dir", str(tmp_path / "whole")) == 0
    assert {row["experiment"]: row["state_digest"] for row in table(tmp_path / "whole")} == resumed
    summary = json.loads((rounds.parent / "summary.json").read_text())
    assert summary["rounds"] == 60
    if "[1/2] Short/seed_0" not in said:  # it was killed as well, or not yet started
        assert "Short/seed_0" in here.asked


@pytest.mark.parametrize(
    ("visible", "federation", "dealt"),
    [
        (None, {"accelerator": "auto"}, ["0", "1", "2"]),
        ("4,7", {"accelerator": "cuda"}, ["4", "7"]),
        (None, {"accelerator": "cpu"}, []),
        (None, {"accelerator": "auto", "devices": 2}, []),  # such a run takes GPUs by itself
    ],
)
def test_gpus_are_dealt_to_runs_that_use_one(
    visible: str | None, federation: dict[str, Any], dealt: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    config = {"federation": {"devices": 1, **federation}}
    run = SuiteRun("A/seed_0", Variant("A", "", ()), config, tmp_path)
    assert gpus_of([run, run]) == dealt


def test_every_run_has_its_threads_and_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    first, second, third = (environment_of(place, 2, ["4", "7"]) for place in range(3))
    assert {env["OMP_NUM_THREADS"] for env in (first, second, third)} == {"2"}
    assert [env["CUDA_VISIBLE_DEVICES"] for env in (first, second, third)] == ["4", "7", "4"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "CUDA_VISIBLE_DEVICES" not in environment_of(0, 1, [])
