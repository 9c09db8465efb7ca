"""What a run of a suite gets of the machine: threads, and a GPU."""

import os
from collections.abc import Iterable, Sequence

from lit_fed.cli.suite_runs import Run

__all__ = ["environment_of", "gpus_of", "processors"]


def environment_of(place: int, threads: int, gpus: Sequence[str]) -> dict[str, str]:
    """The environment variables of a run.

    Args:
        place: Which of those that run at a time it is, from 0.
        threads: It may use.
        gpus: To deal over the places, by the names that CUDA knows; none leaves them all to every run.
    """
    own = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    if gpus:
        own["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    return {**os.environ, **own}


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus_of(runs: Iterable[Run]) -> list[str]:
    """The GPUs to deal runs over, a GPU each; none if runs do not use one, or use several by themselves."""
    import torch

    asked = {(run.config["federation"]["accelerator"], str(run.config["federation"]["devices"])) for run in runs}
    if not torch.cuda.is_available() or not asked <= {(name, "1") for name in ("auto", "gpu", "cuda")}:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
