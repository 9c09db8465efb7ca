"""Equal tuning effort: every experiment of a suite with the same learning rates, scored on validation data.

``python -m benchmarks.tune --suite configs/suites/fedra.yaml --lr 2e-3 4e-3 8e-3 --json FILE`` runs each experiment of
the suite with its first seed in its first setting, once for each learning rate, and prints the suite's metric on the
clients' validation data, as its mean over clients (without a metric, the one that runs show). No test data is looked
at. The suite's own learning rates are the best of them. Further arguments are settings of every run, as with
`lit-fed suite`. With ``--processes 2`` two runs go on at a time; numbers depend on ``--threads`` alone.
"""

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml

from lit_fed.cli.settings import Settings
from lit_fed.cli.suite_file import read_suite
from lit_fed.cli.suite_runs import Run, resolve
from lit_fed.core.errors import ConfigError
from lit_fed.metrics.names import higher_is_better, primary

LR = "--model.init_args.optimizer.init_args.lr"


def validated(args: list[str], metric: str | None) -> float:
    """One run's score on the clients' validation data."""
    settings = Settings(args)
    with tempfile.TemporaryDirectory() as folder:
        federation = settings.federation()
        federation.run_dir = Path(folder)
        module, data = settings.module(), settings.data()
        result = federation.fit(module, data)
        return mean_over_clients(federation.validate(settings.module(), settings.data(), result.path), metric)


def mean_over_clients(scores: Mapping[str, float], metric: str | None) -> float:
    """The mean of a metric over clients, each with what it would be served.

    Args:
        scores: By the names of ``summary.json``.
        metric: A suite's: ``"accuracy"`` or ``"personal/accuracy"``, which are the same here; `None`: what runs show.

    Raises:
        ConfigError: If it is not among them.
    """
    name = (metric or primary(scores)).removeprefix("personal/")
    known = [key.removeprefix("personal/").removesuffix("_mean") for key in scores if key.endswith("_mean")]
    if name not in known:
        raise ConfigError(f"Expected `metric` to be scored on clients' validation data, {known}, but got {name!r}.")
    return scores[f"personal/{name}_mean"]


def best(scores: Mapping[str, float], metric: str | None) -> str:
    """The learning rate with the best score; the first of equals."""
    choose: Callable[..., str] = max if metric is None or higher_is_better(metric) else min
    return choose(scores, key=lambda lr: scores[lr])


def first_runs(runs: Iterable[Run], seed: int, names: Iterable[str]) -> dict[str, Run]:
    """Of each experiment the run with this seed in the first of its settings."""
    found: dict[str, Run] = {}
    for run in runs:
        if run.config["seed_everything"] == seed and run.variant.experiment in names:
            found.setdefault(run.variant.experiment, run)
    return found


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, required=True)
    parser.add_argument("--lr", nargs="+", required=True, help="learning rates, each tried for every experiment")
    parser.add_argument("--rounds", type=int, help="instead of the experiments' own")
    parser.add_argument("--only", nargs="+", help="experiments; default all")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of each run")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time")
    arguments, given = parser.parse_known_args()
    suite = read_suite(arguments.suite, given=given)
    runs = first_runs(resolve(suite), suite.seeds[0], suite.chosen(arguments.only))
    more = ["--federation.progress=false", "--federation.pictures=false", "--federation.evaluate_every=0"]
    more += [f"--federation.rounds={arguments.rounds}"] if arguments.rounds else []
    found: dict[str, dict[str, float]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(
            arguments.processes, multiprocessing.get_context("spawn"), torch.set_num_threads, (arguments.threads,)
        ) as pool,
    ):
        jobs: dict[str, dict[str, Any]] = {}
        for place, (name, run) in enumerate(runs.items()):
            own = Path(folder) / f"{place}.yaml"
            own.write_text(yaml.safe_dump(run.config))
            args = ["--config", str(own), *more]
            jobs[name] = {lr: pool.submit(validated, [*args, f"{LR}={lr}"], suite.metric) for lr in arguments.lr}
        try:
            for name, tried in jobs.items():
                found[name] = {lr: job.result() for lr, job in tried.items()}
                said = (f"{lr}: {score:.4f}" for lr, score in found[name].items())
                print(f"{name:30}", *said, f"best {best(found[name], suite.metric)}", flush=True)
                arguments.json.write_text(json.dumps(found, indent=2))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what is left could take hours
            raise


if __name__ == "__main__":
    main()
