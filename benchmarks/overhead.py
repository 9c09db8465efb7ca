"""What the engine costs: the same FedAvg by lit_fed and by a hand-written loop, in one run.

``python -m benchmarks.overhead --json FILE`` writes seconds per round, ratios, the largest difference of the final
adapters, and peak memory with 10 and with 1,000 registered clients. Rounds by hand and by lit_fed take turns in one
process, both over the same work from the same start, with the same arithmetic: ``kernels="torch"``.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.workload import PlainLoop, Regime, run_lit_fed
from lit_fed import Federation
from lit_fed.callbacks import Callback

COMPUTE = Regime("compute-bound", clients=4, steps=4, batch_size=32, rounds=1)
OVERHEAD = Regime("overhead-bound", clients=64, steps=2, batch_size=8, rounds=1)


class Turns(Callback):
    """Does a round by hand before every round of lit_fed, and times both: tables and checkpoint included."""

    def __init__(self, regime: Regime) -> None:
        self.loop = PlainLoop(regime)
        self.by_hand = self.loop.values()
        self.loop_s: list[float] = []
        self.own_s: list[float] = []
        self._began = 0.0

    def on_round_start(self, federation: Federation, round: int, cohort: tuple[str, ...]) -> None:
        """A round of lit_fed ends where the next one begins."""
        ended = time.perf_counter()
        if round:
            self.own_s.append(ended - self._began)
        self.by_hand = self.loop.round(round, self.by_hand)
        self._began = time.perf_counter()
        self.loop_s.append(self._began - ended)


def compare(regime: Regime, repeats: int) -> dict[str, Any]:
    """Both ways in turn, a round each, `repeats` times; the ratio is the median over pairs."""
    turns = Turns(regime)
    rounds = repeats + 2  # the first warms up, the last ends with an evaluation
    with tempfile.TemporaryDirectory() as folder:
        adapter = run_lit_fed(replace(regime, rounds=rounds), Path(folder), watch=turns, kernels="torch")
    timed = slice(1, repeats + 1)
    loop_s, own_s = turns.loop_s[timed], turns.own_s[timed]
    by_hand = turns.loop.named(turns.by_hand)
    return {
        **asdict(regime), "rounds": rounds, "loop_s": statistics.median(loop_s), "lit_fed_s": statistics.median(own_s),
        "ratio": statistics.median(own / loop for own, loop in zip(own_s, loop_s, strict=True)),
        "loop_rounds_s": loop_s, "lit_fed_rounds_s": own_s,
        "largest_difference": max(float((adapter[name] - value).abs().max()) for name, value in by_hand.items()),
    }  # fmt: skip


def peak_memory(clients: int, cohort: int) -> int:
    """Peak resident memory, in bytes, of a process of its own: the same 2,000 pictures over 10 or 1,000 clients."""
    code = (
        "from benchmarks.overhead import many_clients\n"
        "from lit_fed.engine.peak import peak_resident_bytes\n"
        f"many_clients({clients}, {cohort})\n"
        "print(peak_resident_bytes())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    return int(done.stdout.split()[-1])


def many_clients(clients: int, cohort: int) -> None:
    """Five rounds of one step with private state (every client keeps an adapter of its own)."""
    from flwr_datasets.partitioner import IidPartitioner

    from benchmarks.workload import RandomPictures, make_module
    from lit_fed import FederatedDataModule, Local

    regime = Regime("memory", clients=clients, steps=1, batch_size=8, rounds=5)
    data = FederatedDataModule(
        RandomPictures(2000, 2), IidPartitioner(num_partitions=clients), val_fraction=0.0, test_fraction=0.0
    )
    with tempfile.TemporaryDirectory() as folder:
        Federation(
            Local(local_steps=1), rounds=regime.rounds, cohort=cohort, run_dir=folder, evaluate_every=0, progress=False,
            accelerator="cpu",
        ).fit(make_module(regime), data)  # fmt: skip


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where to write the numbers")
    parser.add_argument("--repeats", type=int, default=11, help="timed pairs, after one that warms up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report: dict[str, Any] = {"threads": arguments.threads, "torch": torch.__version__}
    for regime in (COMPUTE, OVERHEAD):
        report[regime.name] = found = compare(regime, arguments.repeats)
        print(
            f"{regime.name:15} loop {found['loop_s']:.3f} s  lit_fed {found['lit_fed_s']:.3f} s  "
            f"ratio {found['ratio']:.3f}  largest difference {found['largest_difference']:.1e}",
            flush=True,
        )
    few, many = peak_memory(10, 10), peak_memory(1000, 10)
    report["peak_memory_bytes"] = {"10 clients": few, "1000 clients": many, "ratio": many / few}
    print(f"peak memory      10 clients {few / 1e6:.0f} MB  1,000 clients {many / 1e6:.0f} MB  ratio {many / few:.3f}")
    arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
