"""Signature = flag = YAML key, and one line for whatever is wrong."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule

from lit_fed.algorithms import FedProx
from lit_fed.cli.explain import explain
from lit_fed.cli.settings import Settings, build_parser
from lit_fed.core.errors import ConfigError
from lit_fed.data import Digits

BASE = """
seed_everything: 3
model: {class_path: ImageClassifier, init_args: {num_labels: 10}}
data: {source: Digits, batch_size: 16}
algorithm: FedAvg
federation: {rounds: 2, accelerator: cpu}
"""


class Drawn(LightningModule):
    """Draws from the global generators when it is made."""

    def __init__(self, sharp: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3))


@pytest.fixture
def base(tmp_path: Path) -> list[str]:
    (tmp_path / "base.yaml").write_text(BASE)
    return ["--config", str(tmp_path / "base.yaml")]


def test_flags_go_over_files_and_later_files_over_earlier(base: list[str], tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("federation: {rounds: 5, devices: 2}")
    resolved = Settings([*base, "--config", str(tmp_path / "more.yaml"), "--federation.devices", "3"]).resolved()
    assert (resolved["federation"]["rounds"], resolved["federation"]["devices"]) == (5, 3)
    assert resolved["federation"]["accelerator"] == "cpu"


def test_classes_by_short_name_and_their_arguments(base: list[str]) -> None:
    settings = Settings([*base, "--algorithm", "FedProx", "--algorithm.mu", "0.5", "--algorithm.local_steps", "7"])
    algorithm = settings.federation().algorithm
    assert type(algorithm) is FedProx
    assert (algorithm.mu, algorithm.budget.steps, algorithm.budget.epochs) == (0.5, 7, None)


@pytest.mark.usefixtures("global_rng_untouched")
def test_groups_become_objects(base: list[str]) -> None:
    settings = Settings([*base, "--data.partitioner", "IidPartitioner", "--data.partitioner.num_partitions", "4"])
    federation, data = settings.federation(), settings.data()
    assert (federation.seed, federation.rounds, federation.accelerator) == (3, 2, "cpu")
    assert isinstance(data.source, Digits)
    assert data.batch_size == 16
    assert data.partitioner.num_partitions == 4
    assert settings.module().num_labels == 10


def test_callbacks_and_loggers_by_class_path(base: list[str], tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text(
        "federation: {callbacks: [{class_path: EarlyStopping}, {class_path: LearningRateMonitor}],"
        f" logger: {{class_path: CSVLogger, init_args: {{save_dir: {tmp_path}}}}}}}"
    )
    federation = Settings([*base, "--config", str(tmp_path / "more.yaml")]).federation()
    assert "EarlyStopping" in [type(callback).__name__ for callback in federation.callbacks]
    assert [type(callback).__name__ for callback in federation.lightning_callbacks] == ["LearningRateMonitor"]
    assert [type(logger).__name__ for logger in federation.loggers] == ["CSVLogger"]


def test_the_resolved_settings_resolve_to_themselves(base: list[str], tmp_path: Path) -> None:
    first = Settings([*base, "--algorithm.local_steps", "7"]).resolved()
    (tmp_path / "resolved.yaml").write_text(yaml.safe_dump(first))
    assert Settings(["--config", str(tmp_path / "resolved.yaml")]).resolved() == first
    assert set(first) == {"seed_everything", "model", "data", "algorithm", "federation"}
    assert first["algorithm"]["init_args"] == {"weights": "examples", "local_steps": 7, "local_epochs": None}
    assert first["federation"]["min_updates"] == 1  # defaults included


def test_what_a_constructor_draws_depends_on_the_seed_alone(base: list[str]) -> None:
    def weight(*more: str) -> torch.Tensor:
        return Settings([*base, "--model", f"{__name__}.Drawn", *more]).module().weight

    first = weight()
    torch.rand(5)
    assert torch.equal(weight(), first)
    assert torch.equal(weight("--algorithm", "Local", "--federation.rounds", "9"), first)
    assert not torch.equal(weight("--seed_everything", "4"), first)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("rounds: 3", "There is no setting `rounds`. Did you mean 'federation.rounds'?"),
        ("federaton: {rounds: 3}", "There is no setting `federaton.rounds`. Did you mean 'federation'?"),
        (
            "federation: {round: 3}",
            "There is no setting `federation.round`. Did you mean 'rounds'? Settings here are acc",
        ),
        ("data: {batchsize: 3}", "There is no setting `data.batchsize`. Did you mean 'batch_size'?"),
        ("federation: {rounds: three}", "Expected `federation.rounds` to be int, but got 'three'."),
        ("federation: {cohort: many}", "Expected `federation.cohort` to be int or float, but got 'many'."),
        (
            "federation: {parallel: client}",
            "Expected `federation.parallel` to be 'clients' or 'within', but got 'client'.",
        ),
        ("federation: 3", "Expected `federation` to hold settings by name, but got 3."),
        ("algorithm: FedAwg", "Expected `algorithm` to be a class path, or one of AllLarge, AllSmall, Centralized,"),
        ("algorithm: {class_path: FedAwg}", "but got 'FedAwg'. Did you mean 'FedAvg'?"),
        ("algorithm: ImageClassifier", "Expected `algorithm` to be a class path, or one of AllLarge,"),
        ("algorithm: lit_fed.algorithms.base.Algorithm", "Expected `algorithm` to be a class path, or one of AllL"),
        (
            "algorithm: {class_path: FedAvg, init_args: {local_stes: 4}}",
            "There is no setting `algorithm.local_stes`. Did you mean 'local_steps'? "
            "Settings here are local_epochs, local_steps, weights.",
        ),
        (
            "algorithm: {class_path: FedAvg, init_args: {local_steps: lots}}",
            "Expected `algorithm.local_steps` to be int or null, but got 'lots'.",
        ),
        ("algorithm: {class_path: FedAvg, local_steps: 4}", "Put its settings under `init_args`."),
        (
            "algorithm: {class_path: FedAvg, init_args: {weights: example}}",
            "to be 'examples' or 'uniform', but got 'ex",
        ),
        ("data: {source: Digit}", "Expected `data.source` to be a class path, or one of "),
        (
            "data: {source: {class_path: Digits, init_args: {domain: 1}}}",
            "There is no setting `data.source.domain`. Did you mean 'domains'?",
        ),
        (
            "data: {partitioner: {class_path: DirichletPartitioner}}",
            "Expected `data.partitioner.num_partitions`, `data.partitioner.partition_by`, `data.partitioner.alpha` to "
            "be given, but got nothing.",
        ),
        (
            "model: {class_path: nothing.There}",
            "Expected `model` to be a class that can be imported, but got 'nothing.T",
        ),
        ("model: {class_path: lit_fed.modules.Clasifier}", "has no attribute 'Clasifier'."),
        ("model: null", "Expected `model` to be given, but got nothing."),
        ("a: [", "Problems parsing config: while parsing a flow"),
    ],
)
def test_mistakes_in_a_file(more: str, said: str, base: list[str], tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text(more)
    with pytest.raises(ConfigError) as error:
        Settings([*base, "--config", str(tmp_path / "more.yaml")])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--federation.round", "3"], "There is no setting `federation.round`. Did you mean 'rounds'?"),
        (["--algorithm.mu", "3"], "There is no setting `algorithm.mu`. Settings here are local_epochs,"),
        (["--ckpt_pth", "last"], "There is no setting `--ckpt_pth`."),
        (["stray"], "There is no setting `stray`."),
        (["--seed_everything", "x"], "Expected `seed_everything` to be int, but got 'x'."),
        (["--data", "3"], "Expected `data` to hold settings by name, or to be a YAML file of them, but got '3'."),
        (["--federation.rounds"], "argument --federation.rounds: expected one argument"),
        (["--federation.logger", "CSVLoger"], "Did you mean 'CSVLogger'?"),
        (["--config", "nowhere.yaml"], "nowhere.yaml does not exist."),
    ],
)
def test_mistakes_on_the_command_line(args: list[str], said: str, base: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        Settings([*base, *args])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_everything_is_said_in_one_line_even_what_was_not_foreseen() -> None:
    assert explain("Something\n  new\n    - and nested", build_parser()) == "Something new - and nested"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"data.source.domains": "[green]"},
            "Expected `data` to be settings that can be built, but got: Expected `domains`",
        ),
        ({"data.batch_size": "0"}, "Expected `data.batch_size` to be >= 1, but got 0."),
        ({"model.num_labels": "1"}, "Expected `model.num_labels` to be >= 2, but got 1."),
    ],
)
def test_what_a_constructor_refuses(more: dict[str, Any], said: str, base: list[str]) -> None:
    settings = Settings([*base, *(f"--{key}={value}" for key, value in more.items())])
    with pytest.raises(ConfigError) as error:
        _ = settings.data(), settings.module()
    assert said in str(error.value)
