"""``lit-fed fit --fastest``: how to deal the machine's cores over processes, by a short measurement."""

import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from lit_fed.cli.settings import Settings
from lit_fed.core.errors import ConfigError, LitFedError

__all__ = ["Layout", "fastest_settings"]

_ROUNDS = 3  # the first one warms up
_QUIET = (
    f"--federation.rounds={_ROUNDS}", "--federation.evaluate_every=0", f"--federation.checkpoint_every={_ROUNDS}",
    "--federation.progress=false", "--federation.pictures=false", "--federation.logger=null",
    "--federation.dry_run=false",
)  # fmt: skip


class Layout(NamedTuple):
    """How many processes, and threads of each."""

    devices: int
    threads: int

    @property
    def settings(self) -> list[str]:
        """As flags of ``lit-fed fit``."""
        return [f"--federation.devices={self.devices}", f"--federation.threads={self.threads}"]


def fastest_settings(args: Sequence[str], cores: int | None = None) -> list[str]:
    """The flags of the faster of two layouts: one process with all cores as threads, or one process for each core.

    On GPUs it is one process for each of them, and nothing is measured. Says what it has found.

    Args:
        args: Those of ``lit-fed fit``; a few rounds of this federation are run.
        cores: By default those that this process may use.

    Raises:
        ConfigError: If processes are not to be chosen: ``parallel: within``, several nodes, started by others.
        LitFedError: If a measurement fails, with its last lines.
    """
    if "LOCAL_RANK" in os.environ or "SLURM_PROCID" in os.environ:
        raise ConfigError(
            "Expected `--fastest` in a process that starts the others, but torchrun or SLURM has started this one."
            " Leave it out, or start `lit-fed` by itself."
        )
    federation = Settings(list(args)).federation()
    if federation.parallel == "within" or federation.num_nodes > 1:
        raise ConfigError(
            "Expected `--fastest` with `federation.parallel: clients` on one node, but got `parallel:"
            f" {federation.parallel}`, `num_nodes: {federation.num_nodes}`. Say `federation.devices` yourself."
        )
    if gpus := _gpus(federation.accelerator):
        print(f"one process for each GPU: --federation.devices={gpus}", flush=True)
        return [f"--federation.devices={gpus}"]
    cores = cores or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))
    if cores == 1:
        return Layout(1, 1).settings
    return _best((Layout(1, cores), Layout(cores, 1)), lambda layout: round_seconds(args, layout)).settings


def _best(layouts: Sequence[Layout], measure: Callable[[Layout], float]) -> Layout:
    """The layout of the fewest seconds a round; the first of equals."""
    seconds = {}
    for layout in layouts:
        seconds[layout] = measure(layout)
        print(f"{seconds[layout]:8.2f} s a round with {' '.join(layout.settings)}", flush=True)
    best = min(layouts, key=lambda layout: seconds[layout])
    print(f"fastest: {' '.join(best.settings)}", flush=True)
    return best


def round_seconds(args: Sequence[str], layout: Layout) -> float:
    """The seconds of a round with a layout, in processes of its own: the faster of two that follow a first one."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lit_fed", "fit", *args, *_QUIET, *layout.settings]
        done = subprocess.run(  # noqa: S603
            [*command, f"--federation.run_dir={folder}"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise LitFedError(f"A measurement for `--fastest` failed:\n{done.stderr[-2000:].strip()}")
        (metrics,) = Path(folder).glob("version_*/metrics.csv")
        with metrics.open(newline="") as file:
            return min(float(row["seconds"]) for row in list(csv.DictReader(file))[1:])


def _gpus(accelerator: object) -> int:
    """The GPUs that a federation would run on."""
    import torch

    return torch.cuda.device_count() if accelerator in ("auto", "gpu", "cuda") else 0
