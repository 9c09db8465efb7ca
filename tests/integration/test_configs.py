"""Every configuration in `configs/` runs: one round, on the CPU."""

from pathlib import Path

import pytest
import yaml

from lit_fed.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if "suites" not in path.parts)
ONE_ROUND = {
    "rounds": 1,
    "accelerator": "cpu",
    "devices": 1,
    "precision": "32-true",
    "progress": False,
}


def test_there_are_some() -> None:
    assert CONFIGS / "quickstart.yaml" in FILES


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_one_round(path: Path, tmp_path: Path, one_thread: None) -> None:
    overrides = [f"--federation.{key}={str(value).lower()}" for key, value in ONE_ROUND.items()]
    assert main(["fit", "--config", str(path), *overrides, f"--federation.run_dir={tmp_path}"]) == 0
    # The record of the run is the configuration, and what was not said here is as the file says it.
    record = yaml.safe_load((tmp_path / "version_0" / "config.yaml").read_text())
    said = yaml.safe_load(path.read_text())
    assert record["seed_everything"] == said.get("seed_everything", 0)
    assert {key: record["federation"][key] for key in said["federation"] if key not in ONE_ROUND} == {
        key: value for key, value in said["federation"].items() if key not in ONE_ROUND
    }
