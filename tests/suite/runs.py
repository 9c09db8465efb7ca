"""Run folders as a federation leaves them, with numbers of one's own."""

import json
from pathlib import Path
from typing import Any

import yaml

from lit_fed.suite.record import Record


def summary(
    domains: dict[str, float],
    seed: int = 0,
    algorithm: str = "FedAvg",
    metric: str = "accuracy",
    rounds: int = 2,
    up_bytes: int = 4000,
    train_s: float = 3.0,
    **metrics: float,
) -> dict[str, Any]:
    """`metrics`: further ones, with ``__`` for a slash."""
    scores = {f"global/{metric}": sum(domains.values()) / len(domains)}
    scores |= {f"global/{metric}/{domain}": value for domain, value in domains.items()}
    scores |= {name.replace("__", "/"): value for name, value in metrics.items()}
    return {
        "schema": 1, "algorithm": algorithm, "seed": seed, "rounds": rounds, "num_clients": 3, "metrics": scores,
        "traffic": {"up_bytes": up_bytes, "down_bytes": 2 * up_bytes}, "trainable_parameters": 5,
        "total_parameters": 50, "seconds": {"setup": 1.0, "train": train_s, "evaluate": 1.0}, "peak_memory_bytes": 10,
        "state_digest": f"{algorithm}{seed}",
    }  # fmt: skip


def record(experiment: str, seed: int, domains: dict[str, float] | float, setting: str = "", **settings: Any) -> Record:
    found = domains if isinstance(domains, dict) else {"all": domains}
    written = summary(found, seed, **settings)
    return Record(experiment, seed, written, {}, Path(experiment, str(seed)), setting)


CONFIG = {
    "seed_everything": 0,
    "model": {"class_path": "Net", "init_args": {"lr": 0.1}},
    "data": {"source": "Points", "batch_size": 8, "partitioner": {"init_args": {"alpha": 0.5, "seed": 0}}},
    "algorithm": {"class_path": "FedAvg", "init_args": {"local_steps": 1}},
    "federation": {"rounds": 2, "devices": 1, "run_dir": "runs"},
}


def write_run(folder: Path, written: dict[str, Any], config: dict[str, Any] = CONFIG) -> Path:
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(written))
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "seed_everything": written["seed"]}))
    return folder
