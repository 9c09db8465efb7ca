"""What is read of a finished run: its summary and its settings."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_fed.core.errors import ConfigError

__all__ = ["Record", "Scores", "metric_names", "read_record", "scores_of"]

_PERSONAL = "personal/"


@dataclass(frozen=True)
class Record:
    """One finished run, and where it stands in a comparison."""

    experiment: str
    seed: int
    summary: Mapping[str, Any]
    """The content of ``summary.json``."""
    config: Mapping[str, Any]
    """The content of ``config.yaml``."""
    path: Path
    setting: str = ""
    """The variant of data or clients it was made in; empty where there is only one."""


@dataclass(frozen=True)
class Scores:
    """One metric of one run."""

    mean: float
    """Over domains, each counting the same; of a personal metric, over clients."""
    domains: Mapping[str, float]
    """Empty where there is only one."""
    personal: float | None
    """Mean over clients, of each one's own serving on its own test data."""
    worst: float | None
    """The worst client's."""


def read_record(path: Path, experiment: str | None = None, setting: str = "") -> Record:
    """Read a run folder.

    Args:
        path: The folder.
        experiment: What it is called; by default the algorithm's name.
        setting: See `Record`.

    Raises:
        ConfigError: If it is not the folder of a finished run.
    """
    try:
        summary = json.loads((path / "summary.json").read_text())
        config = yaml.safe_load((path / "config.yaml").read_text())
    except FileNotFoundError as error:
        inside = sorted(str(found.parent) for found in path.glob("version_*/summary.json"))
        hint = f" Did you mean {inside[-1]!r}?" if inside else ""
        raise ConfigError(
            f"Expected `run` to be the folder of a finished run, but {error.filename} does not exist.{hint}"
        ) from None
    except (ValueError, yaml.YAMLError, OSError) as error:
        raise ConfigError(
            f"Expected `run` to be the folder of a finished run, but {path} is damaged: {error}"
        ) from error
    return Record(experiment or summary["algorithm"], summary["seed"], summary, config or {}, path, setting)


def metric_names(summary: Mapping[str, Any]) -> list[str]:
    """The metrics of a run that can be compared: ``"accuracy"`` over domains, ``"personal/accuracy"`` over clients."""
    names = list(summary["metrics"])
    overall = [name.removeprefix("global/") for name in names if name.startswith("global/")]
    overall = [name for name in overall if not any(name.startswith(f"{other}/") for other in overall)]
    own = [name.removesuffix("_mean") for name in names if name.startswith(_PERSONAL) and name.endswith("_mean")]
    return overall + own


def scores_of(summary: Mapping[str, Any], metric: str) -> Scores:
    """One of its `metric_names`."""
    metrics: Mapping[str, float] = summary["metrics"]
    name = metric.removeprefix(_PERSONAL)
    marker = f"global/{name}/"
    domains = {key.removeprefix(marker): value for key, value in metrics.items() if key.startswith(marker)}
    personal, worst = metrics.get(f"{_PERSONAL}{name}_mean"), metrics.get(f"{_PERSONAL}{name}_worst")
    if metric.startswith(_PERSONAL):
        assert personal is not None
        return Scores(personal, {}, None, worst)
    mean = sum(domains.values()) / len(domains) if domains else metrics[f"global/{name}"]
    return Scores(mean, domains if len(domains) > 1 else {}, personal, worst)
