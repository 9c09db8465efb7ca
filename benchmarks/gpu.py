"""What a GPU makes of a federation of ViT-B/16: steps a second, its part of the ceiling, and clients trained together.

``python -m benchmarks.gpu --json FILE`` runs FedAvg on a ViT-B/16 with random weights (12 blocks of width 768, 12
heads, pictures of 3 x 224 x 224, LoRA r = 8 on q and v, AdamW) by the engine's own path, in bf16-true and bf16-mixed:

1. Clients with batches of 64, one after another. Told are the median seconds of a round, clients and steps a second,
   the part of the ceiling, and the most memory that tensors took. The ceiling is that of a large square product in
   bfloat16, measured just before; arithmetic is what is done, counted by `benchmarks.machine.step_flops`.
2. 16 clients with batches of 4, one after another and in groups of 4, 8 and 16, by turns, as
   `benchmarks.batched_clients` has them: medians of ratios over pairs of neighbouring rounds, and how far adapters are
   apart after a round from the same start.

A round is whole, tables included, and ends when the GPU has done it. It ends with status 1 if adapters are apart beyond
rounding, and with status 2 where there is no GPU. To try it out on a CPU, with a model of two small blocks:
``python -m benchmarks.gpu --json FILE --accelerator cpu --tiny``.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.batched_clients import Rounds, line, measure, most, run
from benchmarks.machine import ceiling_flops, step_flops
from benchmarks.workload import Regime
from lit_fed.engine.precision import BF16, Precision

NO_GPU = (
    "This benchmark needs a GPU that PyTorch can use, and found none; `--accelerator cpu --tiny` tries it out in small."
)


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    pace: Regime
    """Of the first part."""
    together: Regime
    """Of the second."""
    groups: Sequence[int]
    size: int
    """Rows and columns of the matrices that are multiplied for the ceiling."""


_VIT_B_16 = Regime(
    "ViT-B/16", clients=4, steps=16, batch_size=64, rounds=0, width=768, patch=16, heads=12, image=224, channels=3
)
_TINY = Regime(
    "tiny", clients=2, steps=1, batch_size=4, rounds=0, width=24, patch=16, blocks=2, heads=3, image=32, channels=3
)
FULL = Plan(_VIT_B_16, replace(_VIT_B_16, clients=16, steps=4, batch_size=4), (4, 8, 16), size=8192)
TINY = Plan(_TINY, replace(_TINY, clients=4, batch_size=2), (2, 4), size=256)


def measure_pace(
    regime: Regime, precision: Precision, accelerator: str, repeats: int, ceiling: float
) -> dict[str, Any]:
    """A row of the first part."""
    watch = Rounds()
    run(regime, repeats + 2, precision, accelerator, 1, watch)  # the first warms up, the last one evaluates
    timed = slice(1, repeats + 1)
    seconds = statistics.median(watch.seconds[timed])
    steps = regime.clients * regime.steps
    flops = step_flops(regime, "lean")
    return {
        "precision": precision, "batch_size": regime.batch_size, "clients": regime.clients, "steps": regime.steps,
        "round_s": seconds, "rounds_s": watch.seconds[timed], "clients_per_s": regime.clients / seconds,
        "steps_per_s": steps / seconds, "step_flops": flops, "of_ceiling": flops * steps / seconds / ceiling,
        "peak_bytes": most(watch.peak_bytes[timed]),
    }  # fmt: skip


def pace_line(row: Mapping[str, Any]) -> str:
    """A row of the first part, for people."""
    return (
        f"{row['precision']:10} batch {row['batch_size']:3}   {row['clients']} clients x {row['steps']} steps"
        f"   {row['round_s']:8.3f} s   {row['clients_per_s']:.2f} clients/s   {row['steps_per_s']:.1f} steps/s"
        f"   {row['of_ceiling']:.1%} of the ceiling   {memory(row['peak_bytes'])}"
    )


def together_line(row: Mapping[str, Any]) -> str:
    """A row of the second part, for people."""
    return f"{line(row)}   {memory(row['alone_peak_bytes'])} -> {memory(row['together_peak_bytes'])}"


def memory(peak_bytes: int | None) -> str:
    """Memory of the device, for people."""
    return "memory not known" if peak_bytes is None else f"{peak_bytes / 1e9:.2f} GB"


def report(plan: Plan, precisions: Iterable[Precision], accelerator: str, repeats: int, file: Path) -> dict[str, Any]:
    """Measure, print each row, and write all there is after each."""
    device = torch.device(accelerator)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else accelerator
    ceiling = ceiling_flops(torch.bfloat16, plan.size, 20, device)
    print(f"{name}: ceiling {ceiling / 1e12:.3g} TFLOP/s in bfloat16, {plan.size} x {plan.size}", flush=True)
    found: dict[str, Any] = {
        "device": name, "torch": torch.__version__, "cuda": torch.version.cuda,
        "settings": {**asdict(plan), "accelerator": accelerator, "repeats": repeats},
        "ceiling_flops": ceiling, "pace": [], "together": [],
    }  # fmt: skip
    for precision in precisions:
        found["pace"].append(measure_pace(plan.pace, precision, accelerator, repeats, ceiling))
        print(pace_line(found["pace"][-1]), flush=True)
        file.write_text(json.dumps(found, indent=2))
        for group in plan.groups:
            found["together"].append(measure(plan.together, precision, accelerator, group, repeats))
            print(together_line(found["together"][-1]), flush=True)
            file.write_text(json.dumps(found, indent=2))
    return found


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where to write the numbers")
    parser.add_argument("--accelerator", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of two small blocks, and few steps, to try it out")
    parser.add_argument("--precision", nargs="+", choices=BF16, default=["bf16-true", "bf16-mixed"])
    parser.add_argument("--repeats", type=int, help="timed rounds, or pairs of them; 7, or 1 of the tiny model")
    parser.add_argument("--clients", type=int, help="of the first part")
    parser.add_argument("--steps", type=int, help="of each of these")
    parser.add_argument("--groups", type=int, nargs="+", help="clients that are trained together")
    arguments = parser.parse_args()
    if arguments.accelerator == "cuda" and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        sys.exit(2)
    plan = TINY if arguments.tiny else FULL
    pace = plan.pace
    pace = replace(pace, clients=arguments.clients or pace.clients, steps=arguments.steps or pace.steps)
    plan = replace(plan, pace=pace, groups=arguments.groups or plan.groups)
    repeats = arguments.repeats or (1 if arguments.tiny else 7)
    found = report(plan, arguments.precision, arguments.accelerator, repeats, arguments.json)
    sys.exit(0 if all(row["holds"] for row in found["together"]) else 1)


if __name__ == "__main__":
    main()
