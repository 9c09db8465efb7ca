"""`lit-fed fit --fastest`: which layout is taken, and that the run is the command with its flags."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from lit_fed.cli import fastest, main
from lit_fed.cli.fastest import Layout, fastest_settings, round_seconds
from lit_fed.core.errors import LitFedError
from tests.cli.test_commands import CONFIG


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "c.yaml").write_text(CONFIG)
    return str(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({Layout(1, 4): 2.0, Layout(4, 1): 1.5}, ["--federation.devices=4", "--federation.threads=1"]),
        ({Layout(1, 4): 1.0, Layout(4, 1): 1.5}, ["--federation.devices=1", "--federation.threads=4"]),
    ],
)
def test_the_faster_one_becomes_the_command(
    config: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seconds: dict[Layout, float],
    expected: list[str],
) -> None:
    became: list[Sequence[str]] = []
    monkeypatch.setattr(fastest, "round_seconds", lambda args, layout: seconds[layout])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setattr(os, "execv", lambda _, command: became.append(command) or sys.exit(0))
    with pytest.raises(SystemExit):
        main(["fit", "--config", config, "--fastest", "--algorithm.local_steps", "2"])
    given = ["fit", "--config", config, "--algorithm.local_steps", "2"]
    assert became == [[sys.executable, "-m", "lit_fed", *given, *expected]]
    said = capsys.readouterr().out
    assert "2.00 s a round" in said or "1.00 s a round" in said
    assert said.endswith(f"fastest: {' '.join(expected)}\n")


def test_a_round_is_really_run_with_the_layout(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    assert 0 < round_seconds(["--config", config], Layout(2, 1)) < 60
    with pytest.raises(LitFedError, match="num_classes_of_nothing"):
        round_seconds(["--config", config, "--model.num_classes_of_nothing=1"], Layout(1, 1))


def test_one_core_leaves_no_choice(config: str) -> None:
    assert fastest_settings(["--config", config], cores=1) == ["--federation.devices=1", "--federation.threads=1"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--ckpt_path", "last"], "`--fastest` without `--ckpt_path`"),
        (["--federation.parallel", "within"], "parallel: within"),
        (["--federation.num_nodes", "2"], "num_nodes: 2"),
    ],
)
def test_where_there_is_nothing_to_choose_it_is_refused(
    config: str, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    assert main(["fit", "--config", config, "--fastest", *more]) == 2
    assert words in capsys.readouterr().err


def test_started_by_others_it_is_refused(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert main(["fit", "--config", config, "--fastest"]) == 2
    assert "torchrun or SLURM" in capsys.readouterr().err
