"""When it pays to train clients together: rounds with ``batch_clients`` against rounds without, in one run.

``python -m benchmarks.batched_clients --json FILE --threads 1`` runs FedAvg on a ViT of width 192 (12 blocks, 65
tokens, LoRA r = 8 on q and v) by the engine's own path, with batches of 2, 8 and 32, in float32 and bf16-mixed. Rounds
are made by turns with clients one after another and in groups; the ratio is the median over pairs of neighbours: above
1, it pays. What a round comes to is compared first, both ways from the same start: the largest difference of a tensor,
as a part of how far it has moved. If that is beyond rounding, it ends with status 1; how much is won is for the reader.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import device_peak_bytes, forget_peak, wait_for
from benchmarks.workload import Regime, make_data, make_module
from lit_fed import FedAvg, Federation
from lit_fed.callbacks import Callback
from lit_fed.engine.precision import Precision

BATCHES = (2, 8, 32)
PRECISIONS: Sequence[Precision] = ("32-true", "bf16-mixed")
# AdamW divides small numbers by small ones
TOLERANCE: Mapping[Precision, float] = {"32-true": 1e-2, "bf16-mixed": 0.5, "bf16-true": 0.5}


class Lines(Callback):
    """Why clients were not trained together, if they were not."""

    said: list[str]

    def on_round_start(self, federation: Any, round: int, cohort: tuple[str, ...]) -> None:
        """Have the list to which lines are added."""
        self.said = federation._run.together.said


class Rounds(Lines):
    """How long each round took, until the device had done it, and the most memory of a GPU that it had."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.peak_bytes: list[int | None] = []
        self._started = 0.0

    def on_round_start(self, federation: Any, round: int, cohort: tuple[str, ...]) -> None:
        """Begin when nothing is left to do."""
        super().on_round_start(federation, round, cohort)
        self._device = federation._run.fabric.device
        forget_peak(self._device)
        wait_for(self._device)
        self._started = time.perf_counter()

    def on_round_end(self, federation: Federation, round: int, metrics: Mapping[str, float]) -> None:
        """Note it down."""
        wait_for(self._device)
        self.seconds.append(time.perf_counter() - self._started)
        self.peak_bytes.append(device_peak_bytes(self._device))


class Turns(Rounds):
    """Every second round with clients together."""

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def on_round_start(self, federation: Any, round: int, cohort: tuple[str, ...]) -> None:
        """Say how this one is made."""
        federation._run.together.size = self.group if round % 2 else 1
        super().on_round_start(federation, round, cohort)


def run(
    regime: Regime, rounds: int, precision: Precision, accelerator: str, group: int, watch: Callback
) -> dict[str, Tensor]:
    """The final adapter of a federation."""
    data = make_data(regime, pin_memory=accelerator != "cpu" and torch.cuda.is_available())
    with tempfile.TemporaryDirectory() as folder:
        result = Federation(
            FedAvg(weights="uniform", local_steps=regime.steps), rounds=rounds, run_dir=folder, evaluate_every=0,
            checkpoint_every=rounds, callbacks=[watch], progress=False, pictures=False,
            accelerator=accelerator, precision=precision, batch_clients=group,
        ).fit(make_module(regime), data)  # fmt: skip
    return dict(result.adapter)


def gap(regime: Regime, precision: Precision, accelerator: str, group: int) -> float:
    """How far the adapters of one round are apart, of a tensor as a part of how far it has moved; the largest.

    Infinite, if clients were not trained together.
    """
    watch = Lines()
    alone, joint = (run(regime, 1, precision, accelerator, size, watch) for size in (1, group))
    if watch.said:
        return float("inf")
    moved = {name: tensor for name, tensor in alone.items() if name.endswith("lora_B")}  # from 0
    return max(float((joint[name] - tensor).norm() / tensor.norm()) for name, tensor in moved.items())


def measure(regime: Regime, precision: Precision, accelerator: str, group: int, repeats: int) -> dict[str, Any]:
    """A row of the table."""
    difference = gap(regime, precision, accelerator, group)
    watch = Turns(group)
    run(
        regime, 2 * (repeats + 1) + 1, precision, accelerator, group, watch
    )  # a pair to warm up; the last one evaluates
    first, second = slice(2, 2 * repeats + 2, 2), slice(3, 2 * repeats + 2, 2)
    alone, joint = watch.seconds[first], watch.seconds[second]
    ratios = [one / other for one, other in zip(alone, joint, strict=True)]
    return {
        "precision": precision, "batch_size": regime.batch_size, "clients": regime.clients, "steps": regime.steps,
        "batch_clients": group, "alone_s": statistics.median(alone), "together_s": statistics.median(joint),
        "ratio": statistics.median(ratios), "ratios": ratios, "gap": difference, "said": watch.said,
        "alone_peak_bytes": most(watch.peak_bytes[first]), "together_peak_bytes": most(watch.peak_bytes[second]),
        "holds": difference <= TOLERANCE[precision] and not watch.said,
    }  # fmt: skip


def most(peaks: Sequence[int | None]) -> int | None:
    """The largest of some peaks; `None`, where there are none to be had."""
    return max((peak for peak in peaks if peak is not None), default=None)


def line(row: Mapping[str, Any]) -> str:
    """A row, for people."""
    return (
        f"{row['precision']:10} batch {row['batch_size']:3}   {row['clients']} clients, {row['batch_clients']} together"
        f"   {row['alone_s']:8.3f} s -> {row['together_s']:8.3f} s   {row['ratio']:.2f} times faster"
        f"   gap {row['gap']:.1e} {'' if row['holds'] else 'TOO LARGE'}{' '.join(row['said'])}"
    )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where to write the numbers")
    parser.add_argument("--repeats", type=int, default=7, help="timed pairs of rounds, after one that warms up")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--group", type=int, default=8, help="clients that are trained together")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for precision in PRECISIONS:
        for batch_size in arguments.batches:
            regime = Regime("batched", arguments.clients, arguments.steps, batch_size, 0, arguments.width)
            rows.append(measure(regime, precision, arguments.accelerator, arguments.group, arguments.repeats))
            print(line(rows[-1]), flush=True)
    about = {"threads": arguments.threads, "torch": torch.__version__, "accelerator": arguments.accelerator}
    arguments.json.write_text(json.dumps({**about, "rows": rows}, indent=2))
    sys.exit(0 if all(row["holds"] for row in rows) else 1)


if __name__ == "__main__":
    main()
