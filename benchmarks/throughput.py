"""A round of FedAvg-LoRA by lit_fed, by a plain PyTorch loop, and by Flower's simulation and pfl-research.

``python -m benchmarks.throughput --json FILE`` runs every contender in processes of its own, one after another, and
that `--repeats` times; peers that are not installed are left out, and a line says so. Of every run it takes the steady
seconds of a round (the median of `--rounds` after one that warms up), start-up (from the start of the process to the
end of the first round, less a steady one) and peak memory summed over processes. Where batches are small, lit_fed also
runs with four clients at once. Reported are medians over repeats; ratios are to the float32 loop of the same repeat.

Work is equal: same batches, as many threads in all, and the final adapter must be that of the loop in the same
precision: its distance, relative to how far the loop's has moved, is at most 0.05 in float32 and 0.5 in bfloat16, where
AdamW blows up roundings. The ceiling is that of a large matrix product here; arithmetic is that of the loop, counted by
`benchmarks.machine.step_flops`. Beside the numbers goes a picture, with suffix ``.png``.

If lit_fed's best float32 is slower than the best other, or its best bfloat16 is less than twice as fast as the float32
loop in the first two regimes or slower than the best other in bfloat16, it ends with status 1. To try it out in
seconds: ``--repeats 1 --rounds 1 --clients 2 --processes 1 --only lit_fed --regimes 2``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from benchmarks.contender import PEERS, REGIMES, Contender
from benchmarks.machine import MARK, MemoryWatch, ceiling_flops, step_flops
from benchmarks.workload import Regime
from lit_fed.pictures.canvas import COLOURS, new_figure, open_frame, png

FRAMEWORKS = ("loop", "lit_fed", "flower", "pfl")
REFERENCE = Contender("loop")
TOGETHER, SMALL_BATCH = 4, 8
"""Clients that lit_fed trains at once, beside one after another, and the largest batch for which it does."""
FARTHEST = {False: 0.05, True: 0.5}
BF16_SPEEDUP = 2.0


def contenders(processes: int) -> list[Contender]:
    """Everybody who can run here; says who cannot."""
    found = []
    for framework in FRAMEWORKS:
        lacking = [package for package in PEERS.get(framework, ()) if find_spec(package) is None]
        if lacking:
            print(f"{framework:8} left out: {' and '.join(lacking)} not installed", flush=True)
            continue
        at_once = (1, TOGETHER) if framework == "lit_fed" else (1,)
        found += [
            Contender(framework, bf16, n, together)
            for bf16 in (False, True)
            for n in sorted({1, processes})
            for together in at_once
        ]
    return found


def run(contender: Contender, regime: Regime, rounds: int, threads: int, folder: Path) -> dict[str, Any]:
    """One run: seconds of each round, start-up, memory, adapter."""
    folder.mkdir()
    own_threads = max(1, threads // contender.processes)
    command = [
        sys.executable, "-m", "benchmarks.contender", "--framework", contender.framework,
        "--regime", regime.name, "--clients", str(regime.clients), "--rounds", str(rounds + 2), "--folder", str(folder),
        "--processes", str(contender.processes), "--threads", str(own_threads), "--together", str(contender.together),
        *["--bf16"] * contender.bf16,
    ]  # fmt: skip
    environment = {
        **os.environ, MARK: str(folder), "OMP_NUM_THREADS": str(own_threads), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29610", "RAY_USAGE_STATS_ENABLED": "0", "FLWR_TELEMETRY_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH", "")])),
    }  # fmt: skip
    started = time.perf_counter()
    with MemoryWatch(str(folder)) as memory, open(folder / "log", "w+") as log:
        done = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT)  # noqa: S603
        if done.returncode:
            log.seek(0)
            raise RuntimeError(f"{contender.name} ended with status {done.returncode}:\n{log.read()[-3000:]}")
    marks = json.loads((folder / "marks.json").read_text())["marks"][:-1]  # the last round may end with an evaluation
    seconds = [b - a for a, b in pairwise(marks[1:])]
    steady = statistics.median(seconds)
    return {
        "round_s": steady, "rounds_s": seconds, "startup_s": marks[1] - started - steady,
        "peak_bytes": memory.peak_bytes, "adapter": safetensors.torch.load_file(folder / "adapter.safetensors"),
    }  # fmt: skip


def distance(adapter: Mapping[str, Tensor], reference: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> float:
    """How far an adapter is from the reference's, relative to how far that is from where all began (L2)."""
    if adapter.keys() != reference.keys():
        return float("inf")
    apart = sum(float((adapter[name] - value).double().square().sum()) for name, value in reference.items())
    moved = sum(float((initial[name] - value).double().square().sum()) for name, value in reference.items())
    return (apart / moved) ** 0.5


def measure(
    regime: Regime,
    everybody: Sequence[Contender],
    repeats: int,
    rounds: int,
    threads: int,
    ceilings: Mapping[bool, float],
) -> dict[str, Any]:
    """All contenders in turn, `repeats` times."""
    runs: dict[str, list[dict[str, Any]]] = {one.name: [] for one in everybody}
    apart: dict[str, float] = {}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            adapters = {}
            for one in everybody:
                found = run(one, regime, rounds, threads, Path(folder) / one.name.replace(" ", "_"))
                adapters[one.name] = found.pop("adapter")
                runs[one.name].append(found)
            initial = safetensors.torch.load_file(Path(folder) / REFERENCE.name / "initial.safetensors")
            for one in everybody:
                reference = adapters[Contender("loop", one.bf16).name]
                apart[one.name] = max(apart.get(one.name, 0.0), distance(adapters[one.name], reference, initial))
    flops = step_flops(regime) * regime.steps * regime.clients
    rows = []
    for one in everybody:
        own = runs[one.name]
        ratios = [a["round_s"] / b["round_s"] for a, b in zip(own, runs[REFERENCE.name], strict=True)]
        middle = {key: statistics.median(r[key] for r in own) for key in ("round_s", "startup_s", "peak_bytes")}
        rows.append({
            "name": one.name, "framework": one.framework, "bf16": one.bf16, "processes": one.processes, **middle,
            "ratio": statistics.median(ratios), "ratios": ratios, "rounds_s": [r["rounds_s"] for r in own],
            "of_ceiling": flops / middle["round_s"] / ceilings[one.bf16], "distance": apart[one.name],
            "aggregates": apart[one.name] <= FARTHEST[one.bf16],
        })  # fmt: skip
    return {"regime": regime.name, "flops_per_round": flops, "contenders": rows, "verdicts": verdicts(regime, rows)}


def verdicts(regime: Regime, rows: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """What must hold, by name; of everybody the best way to run counts."""

    def best(own: bool, bf16: bool) -> float:
        return min(
            (row["ratio"] for row in rows if (row["framework"] == "lit_fed") == own and row["bf16"] == bf16),
            default=float("inf"),
        )

    found = {"same final adapters": all(row["aggregates"] for row in rows)}
    found["float32 at most the best other"] = best(True, False) <= best(False, False)
    found["bfloat16 at most the best other"] = best(True, True) <= best(False, True)
    if not regime.embedded:
        found[f"bfloat16 {BF16_SPEEDUP:g} times as fast as the float32 loop"] = best(True, True) <= 1 / BF16_SPEEDUP
    return found


def lines(found: Mapping[str, Any]) -> Iterable[str]:
    """A regime's numbers, for people."""
    yield found["regime"]
    for row in found["contenders"]:
        yield (
            f"  {row['name']:24} {row['round_s']:8.3f} s a round  ratio {row['ratio']:.3f}"
            f"  {row['of_ceiling']:6.1%} of the ceiling  start-up {row['startup_s']:5.1f} s"
            f"  {row['peak_bytes'] / 1e6:6.0f} MB  distance {row['distance']:.1e}"
            f"{'' if row['aggregates'] else '  NOT THE SAME ADAPTER'}"
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
        axes.set_xlabel("seconds a round, relative to the float32 loop")
        axes.set_title(one["regime"], fontsize=9)
        open_frame(axes)
    return png(figure)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where to write the numbers; beside it, the picture")
    parser.add_argument("--repeats", type=int, default=5, help="of every contender, in turn")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of a run, after one that warms up")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="of a contender, over its processes"
    )
    parser.add_argument("--processes", type=int, default=2, help="of contenders that use several")
    parser.add_argument("--regimes", type=int, nargs="+", default=[*range(len(REGIMES))], help="places in the list")
    parser.add_argument("--only", nargs="+", choices=FRAMEWORKS, default=FRAMEWORKS, help="beside the float32 loop")
    parser.add_argument("--clients", type=int, help="in place of the regimes' own, to try it out")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ceilings = {False: ceiling_flops(torch.float32), True: ceiling_flops(torch.bfloat16)}
    print(f"ceiling {ceilings[False] / 1e9:.0f} GFLOP/s in float32, {ceilings[True] / 1e9:.0f} in bfloat16", flush=True)
    everybody = [one for one in contenders(arguments.processes) if one.framework in {"loop", *arguments.only}]
    report: dict[str, Any] = {
        "threads": arguments.threads, "torch": torch.__version__, "repeats": arguments.repeats,
        "ceiling_flops": {"float32": ceilings[False], "bfloat16": ceilings[True]}, "regimes": [],
    }  # fmt: skip
    for place in arguments.regimes:
        regime = replace(REGIMES[place], clients=arguments.clients or REGIMES[place].clients)
        here = [one for one in everybody if one.together == 1 or regime.batch_size <= SMALL_BATCH]
        found = measure(regime, here, arguments.repeats, arguments.rounds, arguments.threads, ceilings)
        report["regimes"].append(found)
        print(*lines(found), sep="\n", flush=True)
        arguments.json.write_text(json.dumps(report, indent=2))
    arguments.json.with_suffix(".png").write_bytes(draw(report["regimes"]))
    sys.exit(0 if all(all(one["verdicts"].values()) for one in report["regimes"]) else 1)


if __name__ == "__main__":
    main()
