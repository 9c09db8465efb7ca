"""What the machine gives and takes: its matrix-multiply ceiling, a step's arithmetic, memory of processes and GPUs."""

import gc
import os
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.workload import Regime, make_module
from lit_fed.engine.precision import Kernels

RANK = 8
MARK = "BENCHMARK_MARK"
"""An environment variable: processes are one contender's if they have the same value, whoever their parent is."""


def ceiling_flops(dtype: torch.dtype, size: int = 2048, repeats: int = 5, device: torch.device | None = None) -> float:
    """The best that a square matrix product reaches on a device, in FLOP/s; on a CPU with the threads that torch has.

    Args:
        dtype: Of the matrices.
        size: Their rows and columns.
        repeats: Products, after one that warms up.
        device: Where; `None`: the CPU.
    """
    place = device or torch.device("cpu")
    a, b = (torch.randn(size, size, device=place).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats + 1):
        wait_for(place)
        started = time.perf_counter()
        torch.mm(a, b)
        wait_for(place)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def wait_for(device: torch.device) -> None:
    """Return when the device has done all that it was given; a CPU has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def forget_peak(device: torch.device) -> None:
    """Let `device_peak_bytes` count anew, from what is held now."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.reset_peak_memory_stats(device)


def device_peak_bytes(device: torch.device) -> int | None:
    """The most that tensors took of a GPU's memory since `forget_peak`, in bytes; `None` of a CPU's."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def step_flops(regime: Regime, kernels: Kernels = "torch") -> float:
    r"""Floating-point operations of one step's matrix products, by formula; a multiply-add counts two.

    With B pictures of T tokens (P of them patches of c values), L blocks of width d and inner width m, LoRA of rank r
    on q and v, and C classes, the forward pass has :math:`BTL (8 d^2 + 4 d m)` for projections and inner layers,
    :math:`4 B T^2 L d` for attention, :math:`8 B T L d r` for LoRA and :math:`2 B P c d` for the embedding of patches.
    The backward pass has as much again for projections and inner layers, whose weights are frozen, and twice as much
    for attention and LoRA; but nothing goes below the first block's q, k and v: :math:`B T (6 d^2 + 4 d r)` less. The
    head has :math:`6 B d C` in all.

    With ``kernels="lean"`` the last block of several runs for one token beyond keys and values, forward and backward:
    :math:`B (T - 1) (8 d^2 + 8 d m + 12 T d + 12 d r)` less.
    """
    module = make_module(regime)
    module.configure_model()
    shape: Any = module.backbone.config
    d, m, blocks = shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers
    patches = (shape.image_size // shape.patch_size) ** 2
    tokens, values = patches + 1, shape.num_channels * shape.patch_size**2
    frozen, attention, lora = 8 * d**2 + 4 * d * m, 4 * tokens * d, 8 * d * RANK
    body = tokens * (blocks * (2 * frozen + 3 * attention + 3 * lora) - 6 * d**2 - 4 * d * RANK)
    if kernels == "lean":
        body -= (tokens - 1) * (8 * d**2 + 8 * d * m + 12 * tokens * d + 12 * d * RANK)
    return float(regime.batch_size * (body + 2 * patches * values * d + 6 * d * shape.num_labels))


def peak_bytes(mark: str) -> int:
    """The peaks of all processes alive with a mark, summed, in bytes.

    Each process's own peak is the kernel's (``VmHWM``); pages that processes share count for each of them. Linux only.
    """
    wanted = f"{MARK}={mark}".encode()
    return sum(_peak_of(pid, wanted) for pid in os.listdir("/proc"))


def _peak_of(pid: str, mark: bytes) -> int:
    """A process's peak in bytes; 0 for one that is not marked, not ours, or gone."""
    try:
        if not pid.isdecimal() or mark not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return 0
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
