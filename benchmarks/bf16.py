"""Steps in float32 and in bfloat16, with PyTorch's kernels and with lean ones, in turn in one process.

``python -m benchmarks.bf16 --batch_size 8 32`` takes the ViT of `benchmarks.throughput` (width 192, 12 blocks, 65
tokens, LoRA r = 8 on q and v, AdamW) and makes a step of each kind, `--repeats` times. Told are the least processor
seconds of a step, which another program on the machine disturbs less than the time on the wall, and the median of the
ratios of steps that were neighbours. With ``--profile`` it also says in which operations the time is.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack

import torch

from benchmarks.workload import LR, Regime, make_module
from lit_fed.adapters.state import AdapterView
from lit_fed.core.seeding import generator, isolated_rng
from lit_fed.engine.precision import BF16, Kernels, Precision, cast_frozen, with_kernels

KINDS: tuple[tuple[Precision, Kernels], ...] = (
    ("32-true", "torch"), ("bf16-mixed", "torch"), ("bf16-true", "torch"),
    ("32-true", "lean"), ("bf16-mixed", "lean"), ("bf16-true", "lean"),
)  # fmt: skip


def make_step(precision: Precision, kernels: Kernels, batch_size: int, scopes: ExitStack) -> Callable[[], None]:
    """A training step of a module of its own, which has its kernels until the scopes are left."""
    module = make_module(Regime("step", clients=1, steps=1, batch_size=batch_size, rounds=1))
    with isolated_rng(0, "init"):
        module.configure_model()
    cast_frozen(module, precision)
    random = generator(0, "benchmark")
    pixels = torch.rand(batch_size, 1, 32, 32, generator=random)
    batch = {"pixel_values": pixels, "labels": torch.randint(10, (batch_size,), generator=random)}
    view = AdapterView(module)
    optimizer = torch.optim.AdamW(view.parameters().values(), lr=LR)
    scopes.enter_context(with_kernels(view, precision, kernels))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision in BF16):
            loss = module.loss(module.logits(batch), module.targets(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="tell the twenty most expensive operations of each kind")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for batch_size in arguments.batch_size:
        with ExitStack() as scopes:
            measure(batch_size, arguments.repeats, arguments.profile, scopes)


def measure(batch_size: int, repeats: int, profiled: bool, scopes: ExitStack) -> None:
    """Steps of all kinds in turn, and what they took."""
    steps = [make_step(precision, kernels, batch_size, scopes) for precision, kernels in KINDS]
    seconds: list[list[float]] = [[] for _ in KINDS]
    for repeat in range(repeats + 1):
        for step, found in zip(steps, seconds, strict=True):
            started = time.process_time()
            step()
            if repeat:  # the first warms up
                found.append(time.process_time() - started)
    for (precision, kernels), found, step in zip(KINDS, seconds, steps, strict=True):
        ratio = statistics.median(a / b for a, b in zip(seconds[0], found, strict=True))
        name = f"batch {batch_size}, {precision}, {kernels}"
        print(f"{name:32} {min(found) * 1000:8.1f} ms  {ratio:.2f} times as fast as float32", flush=True)
        if profiled:
            with torch.profiler.profile() as profile:
                step()
            print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=20))


if __name__ == "__main__":
    main()
