"""A round of FedAvg-LoRA by lit_fed, by a plain PyTorch loop, and by Flower's simulation and pfl-research.

``python -m benchmarks.throughput --json FILE`` starts every contender in processes of its own and lets them take turns,
a round each while the others wait, `--rounds` times. Who waits keeps its memory, a gigabyte a process; so they play at
several tables, one after another, of `--seats` processes, and the float32 loop sits at each. Peers that are not
installed are left out, and a line says so; ``pip install 'flwr[simulation]' 'pfl[pytorch]'`` brings them, in an
environment of its own, for their versions are not those of ``constraints.txt``. Reported are the median seconds
of a round, the median of its ratios to the float32 loop's round of the same turn, start-up (from the start of the
process to the end of a first round that is not timed, less a median one) and peak memory, summed over processes.

Everybody runs with all threads in one process and with the threads dealt over several (``loop, 2 x 1``: two processes
of one thread); of everybody the faster counts. lit_fed also runs with one thread in all, and, where batches are small,
with several clients at once. Peers have their model resident in every worker, and AdamW is one kernel for everybody.

Work is equal: same batches, and the final adapter must be that of the loop in the same precision: its distance,
relative to how far the loop's has moved, is at most 0.05 in float32 and 0.5 in bfloat16, where AdamW blows up
roundings. The ceiling is that of a large matrix product here; arithmetic is that of the loop, counted by
`benchmarks.machine.step_flops`. Beside the numbers goes a picture, with suffix ``.png``.

It ends with status 1 if one of these does not hold: lit_fed's best float32 is at most the best other's; its best
bfloat16 is at most the best other's, and in the first two regimes twice as fast as the float32 loop; there two
processes are 1.7 times as fast as one with one thread; and both end with the same state, to the bit. To try it out in
seconds: ``--rounds 1 --clients 2 --only lit_fed --regimes 2``.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from benchmarks.contender import PEERS, REGIMES, Contender
from benchmarks.machine import ceiling_flops, step_flops
from benchmarks.turns import Player
from benchmarks.workload import Regime
from lit_fed.pictures.canvas import COLOURS, new_figure, open_frame, png

FRAMEWORKS = ("loop", "lit_fed", "flower", "pfl")
SMALL_BATCH = 8
"""The largest batch for which lit_fed trains several clients at once."""
FARTHEST = {False: 0.05, True: 0.5}
BF16_SPEEDUP, TWO_PROCESSES = 2.0, 1.7


def contenders(threads: int, processes: int, together: Sequence[int], only_dealt: bool = False) -> list[Contender]:
    """Everybody who can run here, the float32 loop first, the loop of a precision first in it; says who cannot."""
    found = []
    alone, dealt = (1, threads), (processes, max(1, threads // processes))
    for framework in FRAMEWORKS:
        lacking = [package for package in PEERS.get(framework, ()) if find_spec(package) is None]
        if lacking:
            print(f"{framework:8} left out: {' and '.join(lacking)} not installed", flush=True)
            continue
        for bf16 in (False, True):
            settings = [(*dealt, 1)] if only_dealt and framework != "loop" else [(*alone, 1), (*dealt, 1)]
            if framework == "lit_fed":
                settings += [(1, 1, 1)] * (not bf16) + [(*dealt, at_once) for at_once in together]
            found += [Contender(framework, bf16, *setting) for setting in dict.fromkeys(settings)]
    return sorted(found, key=lambda one: one.bf16)


def enter(contender: Contender, regime: Regime, rounds: int, place: int, folder: Path) -> Player:
    """Start a contender; its rounds are one to warm up and `rounds`."""
    command = [
        sys.executable, "-m", "benchmarks.contender", "--framework", contender.framework,
        "--regime", regime.name, "--clients", str(regime.clients), "--rounds", str(rounds + 1), "--folder", str(folder),
        "--processes", str(contender.processes), "--threads", str(contender.threads),
        "--together", str(contender.together), *["--bf16"] * contender.bf16,
    ]  # fmt: skip
    environment = {
        **os.environ, "OMP_NUM_THREADS": str(contender.threads), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(29610 + 20 * place), "RAY_USAGE_STATS_ENABLED": "0", "FLWR_TELEMETRY_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH", "")])),
    }  # fmt: skip
    return Player(contender.name, command, environment, rounds + 1, folder)


def distance(adapter: Mapping[str, Tensor], reference: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> float:
    """How far an adapter is from the reference's, relative to how far that is from where all began (L2)."""
    if adapter.keys() != reference.keys():
        return float("inf")
    apart = sum(float((adapter[name] - value).double().square().sum()) for name, value in reference.items())
    moved = sum(float((initial[name] - value).double().square().sum()) for name, value in reference.items())
    return (apart / moved) ** 0.5


def tables(everybody: Sequence[Contender], seats: int) -> list[list[Contender]]:
    """Who plays together: in this order, the first one at every table; Flower's driver takes a seat too."""
    first, *others = everybody
    found, taken = [[first]], first.processes
    for one in others:
        needs = one.processes + (one.framework == "flower")
        if taken + needs > seats and len(found[-1]) > 1:
            found.append([first])
            taken = first.processes
        found[-1].append(one)
        taken += needs
    return found


def measure(
    regime: Regime,
    everybody: Sequence[Contender],
    rounds: int,
    ceilings: Mapping[bool, float],
    references: dict[bool, dict[str, Tensor]],
) -> list[dict[str, Any]]:
    """A row for each of a table; they take turns, and ratios are to the first, the float32 loop.

    Args:
        regime: What they do.
        everybody: At this table.
        rounds: That are timed.
        ceilings: In FLOP/s, of float32 and of bfloat16.
        references: The loop's final adapter in either precision; its first of a regime is added.
    """
    players: list[Player] = []
    startup: list[float] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        for place, one in enumerate(everybody):
            player = enter(one, regime, rounds, place, Path(name) / str(place))
            stack.callback(player.close)
            players.append(player)
            startup.append(player.play() - player.started)
        for _ in range(rounds):
            for player in players:
                player.play()
        for player in players:
            player.finish()
        adapters = [safetensors.torch.load_file(player.folder / "adapter.safetensors") for player in players]
        digests = [file.read_text() if (file := player.folder / "digest").exists() else None for player in players]
        initial = safetensors.torch.load_file(players[0].folder / "initial.safetensors")
    rows = []
    first = players[0].seconds[1:]
    for one, player, until_first, adapter, digest in zip(everybody, players, startup, adapters, digests, strict=True):
        seconds = player.seconds[1:]
        ratios = [own / other for own, other in zip(seconds, first, strict=True)]
        apart = distance(adapter, references.setdefault(one.bf16, adapter), initial)
        middle = statistics.median(seconds)
        flops = step_flops(regime) * regime.steps * regime.clients
        rows.append({
            "name": one.name, "framework": one.framework, "bf16": one.bf16, "processes": one.processes,
            "threads": one.threads, "together": one.together, "round_s": middle, "rounds_s": seconds,
            "startup_s": until_first - middle, "peak_bytes": player.peak_bytes, "ratio": statistics.median(ratios),
            "ratios": ratios, "of_ceiling": flops / middle / ceilings[one.bf16], "distance": apart,
            "same_adapter": apart <= FARTHEST[one.bf16], "digest": digest,
        })  # fmt: skip
    return rows


def verdicts(regime: Regime, rows: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """What must hold, by name; of everybody the best way to run counts. What was not measured is no verdict."""

    def best(own: bool, bf16: bool) -> float:
        return min(
            (row["ratio"] for row in rows if (row["framework"] == "lit_fed") == own and row["bf16"] == bf16),
            default=float("inf"),
        )

    found = {"same final adapters": all(row["same_adapter"] for row in rows)}
    if any(row["framework"] == "lit_fed" for row in rows):
        found["float32 at most the best other"] = best(True, False) <= best(False, False)
        found["bfloat16 at most the best other"] = best(True, True) <= best(False, True)
        if not regime.embedded:
            found[f"bfloat16 {BF16_SPEEDUP:g} times as fast as the float32 loop"] = best(True, True) <= 1 / BF16_SPEEDUP
    single, several = (
        next((row for row in rows if _is_own(row) and (row["processes"] > 1) == many and row["threads"] == 1), None)
        for many in (False, True)
    )
    if single is not None and several is not None:
        name = f"{several['processes']} processes"
        found[f"{name} end with the state of one, to the bit"] = single["digest"] == several["digest"]
        if not regime.embedded and several["processes"] == 2:
            faster = statistics.median(a / b for a, b in zip(single["ratios"], several["ratios"], strict=True))
            found[f"{name} {TWO_PROCESSES:g} times as fast as one with one thread: {faster:.2f}"] = (
                faster >= TWO_PROCESSES
            )
    return found


def _is_own(row: Mapping[str, Any]) -> bool:
    """lit_fed in float32, one client after another."""
    return bool(row["framework"] == "lit_fed" and not row["bf16"] and row["together"] == 1)


def lines(found: Mapping[str, Any]) -> Iterable[str]:
    """A regime's numbers, for people."""
    yield f"{found['regime']}   ({found['seconds']:.0f} s in all)"
    for row in found["contenders"]:
        yield (
            f"  {row['name']:28} {row['round_s']:8.3f} s a round  ratio {row['ratio']:.3f}"
            f"  {row['of_ceiling']:6.1%} of the ceiling  start-up {row['startup_s']:5.1f} s"
            f"  {row['peak_bytes'] / 1e6:6.0f} MB  distance {row['distance']:.1e}"
            f"{'' if row['same_adapter'] else '  NOT THE SAME ADAPTER'}"
        )
    for name, holds in found["verdicts"].items():
        yield f"  {name}: {'yes' if holds else 'NO'}"


def draw(regimes: Sequence[Mapping[str, Any]]) -> bytes:
    """Ratios of all contenders, a panel a regime."""
    figure = new_figure(4.5 * len(regimes), 0.32 * max(len(one["contenders"]) for one in regimes) + 1.2)
    for axes, one in zip(figure.subplots(1, len(regimes), squeeze=False)[0], regimes, strict=True):
        rows = one["contenders"]
        colours = [COLOURS[FRAMEWORKS.index(row["framework"])] for row in rows]
        axes.barh(range(len(rows)), [row["ratio"] for row in rows], color=colours)
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
        axes.invert_yaxis()
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_xlabel("seconds a round (float32 loop: 1)")
        axes.set_title(one["regime"], fontsize=9)
        open_frame(axes)
    return png(figure)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where to write the numbers; beside it, the picture")
    parser.add_argument("--rounds", type=int, default=5, help="timed, of every contender, after one that warms up")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of a contender, over its processes")
    parser.add_argument("--processes", type=int, default=2, help="over which threads are dealt")
    parser.add_argument("--together", type=int, nargs="*", default=[4], help="clients that lit_fed trains at once")
    parser.add_argument("--regimes", type=int, nargs="+", default=[*range(len(REGIMES))], help="places in the list")
    parser.add_argument("--only", nargs="+", choices=FRAMEWORKS, default=FRAMEWORKS, help="beside the float32 loop")
    parser.add_argument("--only_dealt", action="store_true", help="but for the loop, nobody in one process with all")
    parser.add_argument("--seats", type=int, default=10, help="processes that are there at the same time")
    parser.add_argument("--clients", type=int, help="in place of the regimes' own, to try it out")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ceilings = {False: ceiling_flops(torch.float32), True: ceiling_flops(torch.bfloat16)}
    print(f"ceiling {ceilings[False] / 1e9:.0f} GFLOP/s in float32, {ceilings[True] / 1e9:.0f} in bfloat16", flush=True)
    everybody = contenders(arguments.threads, arguments.processes, arguments.together, arguments.only_dealt)
    everybody = [one for one in everybody if one.framework in {"loop", *arguments.only}]
    report: dict[str, Any] = {
        "threads": arguments.threads, "torch": torch.__version__, "rounds": arguments.rounds,
        "ceiling_flops": {"float32": ceilings[False], "bfloat16": ceilings[True]}, "regimes": [],
    }  # fmt: skip
    for place in arguments.regimes:
        started = time.perf_counter()
        regime = replace(REGIMES[place], clients=arguments.clients or REGIMES[place].clients)
        here = [one for one in everybody if one.together == 1 or regime.batch_size <= SMALL_BATCH]
        rows: list[dict[str, Any]] = []
        references: dict[bool, dict[str, Tensor]] = {}
        for table in tables(here, arguments.seats):
            found_here = measure(regime, table, arguments.rounds, ceilings, references)
            rows += found_here[bool(rows) :]  # the first one's first row will do
        found = {
            "regime": regime.name, "seconds": time.perf_counter() - started, "contenders": rows,
            "verdicts": verdicts(regime, rows),
        }  # fmt: skip
        report["regimes"].append(found)
        print(*lines(found), sep="\n", flush=True)
        arguments.json.write_text(json.dumps(report, indent=2))
    arguments.json.with_suffix(".png").write_bytes(draw(report["regimes"]))
    sys.exit(0 if all(all(one["verdicts"].values()) for one in report["regimes"]) else 1)


if __name__ == "__main__":
    main()
