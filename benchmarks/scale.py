"""What registered clients cost who are not drawn: peak memory and seconds a round, with 100 and with 10,000 of them.

``python -m benchmarks.scale --json FILE --threads 1`` runs rounds of ten clients, each with private state (an adapter
of its own, on disk), from 100 and from 10,000 registered ones, in processes of their own and in turn, `--repeats`
times. All share the same pictures, two for each of 10,000. Memory is the peak of the process, data and start-up
included; seconds are the median of a round, tables and checkpoint included. Ratios are medians over pairs; if one is
above 1.10, it ends with status 1. The evaluation of everybody, at the end, is in neither.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from flwr_datasets.partitioner import IidPartitioner

from benchmarks.workload import Over, RandomPictures, Regime, make_module
from lit_fed import FederatedDataModule, Federation, Local
from lit_fed.callbacks import Callback
from lit_fed.engine.peak import peak_resident_bytes

FEW, MANY, COHORT, ALLOWED = 100, 10_000, 10, 1.10


class Measured(Callback):
    """Times whole rounds, tables and checkpoint included, and ends the run where the last one would begin."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.marks: list[float] = []
        self.peak_bytes = 0

    def on_round_start(self, federation: Federation, round: int, cohort: tuple[str, ...]) -> None:
        """A round begins where the one before ends."""
        self.marks.append(time.perf_counter())
        self.peak_bytes = peak_resident_bytes()
        if round == self.rounds:
            raise Over


def measure(clients: int, examples: int, rounds: int) -> dict[str, Any]:
    """Seconds of each round but the first, which warms up, and peak memory of this process."""
    regime = Regime("scale", clients=clients, steps=1, batch_size=2, rounds=rounds, embedded=True)
    data = FederatedDataModule(
        RandomPictures(examples, regime.batch_size), IidPartitioner(num_partitions=clients), val_fraction=0.0,
        test_fraction=0.0,
    )  # fmt: skip
    watch = Measured(rounds)
    with tempfile.TemporaryDirectory() as folder:
        federation = Federation(
            Local(local_steps=regime.steps), rounds=rounds + 1, cohort=COHORT, run_dir=folder, evaluate_every=0,
            callbacks=[watch], progress=False, pictures=False, accelerator="cpu",
        )  # fmt: skip
        with suppress(Over):
            federation.fit(make_module(regime), data)
    return {"peak_bytes": watch.peak_bytes, "rounds_s": [b - a for a, b in pairwise(watch.marks[1:])]}


def in_a_process(clients: int, examples: int, rounds: int, threads: int) -> dict[str, Any]:
    """`measure` in a process of its own."""
    code = (
        "import json, torch\n"
        "from benchmarks.scale import measure\n"
        f"torch.set_num_threads({threads})\n"
        f"print(json.dumps(measure({clients}, {examples}, {rounds})))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    found = json.loads(done.stdout.splitlines()[-1])
    return {**found, "round_s": statistics.median(found["rounds_s"])}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where to write the numbers")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds of a run, after one that warms up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--many", type=int, default=MANY, help="registered clients; fewer to try it out")
    arguments = parser.parse_args()
    examples = 2 * max(FEW, arguments.many)
    pairs = [
        {n: in_a_process(n, examples, arguments.rounds + 1, arguments.threads) for n in (FEW, arguments.many)}
        for _ in range(arguments.repeats)
    ]
    report: dict[str, Any] = {
        "threads": arguments.threads,
        "torch": torch.__version__,
        "cohort": COHORT,
        "pairs": pairs,
    }
    holds = True
    for key, scale, unit in (("peak_bytes", 1e6, "MB"), ("round_s", 1.0, "s")):
        few, many = (statistics.median(pair[n][key] for pair in pairs) for n in (FEW, arguments.many))
        ratio = statistics.median(pair[arguments.many][key] / pair[FEW][key] for pair in pairs)
        report[key] = {FEW: few, arguments.many: many, "ratio": ratio, "holds": ratio <= ALLOWED}
        holds &= ratio <= ALLOWED
        print(
            f"{key:10} {FEW} clients {few / scale:9.3f} {unit}  {arguments.many} clients {many / scale:9.3f} {unit}"
            f"  ratio {ratio:.3f}  at most {ALLOWED:.2f}: {'yes' if ratio <= ALLOWED else 'NO'}"
        )
    arguments.json.write_text(json.dumps(report, indent=2))
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
