"""One contender of `benchmarks.throughput`, in a process of its own: FedAvg by lit_fed, by hand, or by a peer.

``python -m benchmarks.contender --framework lit_fed --regime NAME --clients 4 --rounds 4 --folder DIR`` leaves in DIR
what `benchmarks.turns.Rounds` tells, ``adapter.safetensors``, of lit_fed the ``digest`` of its state, and of the
hand-written loop ``initial.safetensors``.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.turns import Rounds
from benchmarks.workload import Over, PlainLoop, Regime, run_lit_fed
from lit_fed import Federation
from lit_fed.callbacks import Callback
from lit_fed.engine.precision import Precision

REGIMES = (
    Regime("16 clients x 2 steps of batch 8", clients=16, steps=2, batch_size=8, rounds=1),
    Regime("4 clients x 4 steps of batch 32", clients=4, steps=4, batch_size=32, rounds=1),
    Regime("embedded, 100 clients x 1 step of batch 8", clients=100, steps=1, batch_size=8, rounds=1, embedded=True),
)
PEERS = {"flower": ("flwr", "ray"), "pfl": ("pfl",)}
"""Peer -> the packages it needs; each is a file ``benchmarks/peer_NAME.py`` with a function `run`."""

Adapter = Mapping[str, Tensor]


@dataclass(frozen=True)
class Contender:
    """Who runs the regime, and how."""

    framework: str
    bf16: bool = False
    processes: int = 1
    threads: int = 1
    """Of each process."""
    together: int = 1
    """Clients that lit_fed trains at once (``batch_clients``)."""

    @property
    def name(self) -> str:
        """For tables: processes x threads of each."""
        at_once = f", {self.together} at once" * (self.together > 1)
        return f"{self.framework}{' bf16' * self.bf16}, {self.processes} x {self.threads}{at_once}"


class Turns(Callback):
    """Whole rounds, tables and checkpoint included, and what they came to when the last one has ended.

    Args:
        rounds: How each has its turn.
        number: Of rounds.
        folder: Where the digest of the state is written.
    """

    def __init__(self, rounds: Rounds, number: int, folder: Path) -> None:
        self.rounds, self.number, self.folder = rounds, number, folder
        self.adapter: Adapter = {}

    def on_round_start(self, federation: Federation, round: int, cohort: tuple[str, ...]) -> None:
        """A round begins where the one before ends."""
        if round < self.number:
            self.rounds.next()
            return
        self.rounds.end()
        run = federation._current
        self.adapter = dict(run.server.adapter)
        if federation.is_global_zero:
            (self.folder / "digest").write_text(run.state_digest())
        raise Over


def run_own(regime: Regime, contender: Contender, folder: Path, rounds: Rounds) -> Adapter:
    """By lit_fed; frozen weights are cast once where steps run in bfloat16."""
    turns = Turns(rounds, regime.rounds, folder)
    precision: Precision = "bf16-true" if contender.bf16 else "32-true"
    longer = replace(regime, rounds=regime.rounds + 1)
    with suppress(Over):
        run_lit_fed(longer, folder / "run", turns, precision, contender.processes, together=contender.together)
    return turns.adapter


def run_loop(regime: Regime, contender: Contender, folder: Path, rounds: Rounds) -> Adapter:
    """By hand; several processes deal the clients and add up what they have."""
    rank, world = join(contender.processes)
    loop = PlainLoop(regime, contender.bf16, fused=True)
    current = loop.values()
    if rank == 0:
        safetensors.torch.save_file(loop.named(current), folder / "initial.safetensors")
    everybody = list(loop.shares)
    for round in range(regime.rounds):
        rounds.next()
        current = loop.round(round, current, everybody[rank::world], dist.all_reduce if world > 1 else None)
    rounds.end()
    return loop.named(current)


def join(processes: int) -> tuple[int, int]:
    """This process's rank and how many there are, once all can talk to one another."""
    if processes > 1:
        dist.init_process_group("gloo", rank=int(os.environ["BENCHMARK_RANK"]), world_size=processes)
    return int(os.environ["BENCHMARK_RANK"]), processes


def start_others(contender: Contender) -> list[subprocess.Popen[bytes]]:
    """The other processes of a framework that does not start them itself."""
    if contender.framework not in ("loop", "pfl") or "BENCHMARK_RANK" in os.environ:
        return []
    os.environ["BENCHMARK_RANK"] = "0"
    again = [sys.executable, "-m", "benchmarks.contender", *sys.argv[1:]]
    return [
        subprocess.Popen(again, env={**os.environ, "BENCHMARK_RANK": str(rank)})  # noqa: S603
        for rank in range(1, contender.processes)
    ]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", required=True, choices=["lit_fed", "loop", *PEERS])
    parser.add_argument("--regime", required=True, choices=[one.name for one in REGIMES])
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--together", type=int, default=1, help="clients that lit_fed trains at once")
    parser.add_argument("--bf16", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    contender = Contender(
        arguments.framework, arguments.bf16, arguments.processes, arguments.threads, arguments.together
    )
    (own,) = (one for one in REGIMES if one.name == arguments.regime)
    regime = replace(own, clients=arguments.clients, rounds=arguments.rounds)
    others = start_others(contender)
    runs: dict[str, Callable[[Regime, Contender, Path, Rounds], Adapter]] = {"lit_fed": run_own, "loop": run_loop}
    if contender.framework in PEERS:
        runs[contender.framework] = import_module(f"benchmarks.peer_{contender.framework}").run
    first = all(os.environ.get(name, "0") == "0" for name in ("BENCHMARK_RANK", "LOCAL_RANK"))
    adapter = runs[contender.framework](regime, contender, arguments.folder, Rounds(arguments.folder, tells=first))
    if first:
        whole = {name: value.contiguous() for name, value in adapter.items()}
        safetensors.torch.save_file(whole, arguments.folder / "adapter.safetensors")
    if any(other.wait() for other in others):
        sys.exit("A process of the contender failed.")


if __name__ == "__main__":
    main()
