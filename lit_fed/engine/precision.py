"""Precisions, and what each means for frozen weights and for what is trained.

================  ===============================  ==================  ==========================
precision         frozen weights                   steps run in        adapters, optimizer state
================  ===============================  ==================  ==========================
``32-true``       float32                          float32             float32
``bf16-mixed``    float32, cast for the steps      bfloat16 autocast   float32
``bf16-true``     bfloat16, cast once, half size   bfloat16 autocast   float32
``16-mixed``      float32, cast every step         float16 autocast    float32, scaled losses
================  ===============================  ==================  ==========================

Assumption: ``bf16-true`` keeps what is trained in float32, unlike Fabric's, because an average of adapters in bfloat16
would lose most of a round's change.

On a CPU, the casts of ``bf16-mixed`` are made once and kept beside the weights, see `lit_fed.adapters.lean_linear`. A
GPU makes them in every step, in no time, and spares the memory; so does a CPU with blocks on disk or sharded.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import nn

from lit_fed.adapters.lean import lean
from lit_fed.adapters.state import AdapterView

Kernels = Literal["lean", "torch"]
Precision = Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed"]
BF16: tuple[Precision, ...] = ("bf16-mixed", "bf16-true")
"""Those whose steps run in bfloat16."""


def fabric_precision(precision: Precision) -> Literal["32-true", "bf16-mixed", "16-mixed"]:
    """The Fabric precision whose autocast the steps run under."""
    return "bf16-mixed" if precision == "bf16-true" else precision


def cast_frozen(module: nn.Module, precision: Precision) -> None:
    """Cast frozen floating weights to bfloat16, once, for ``bf16-true``."""
    if precision != "bf16-true":
        return
    for parameter in module.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.bfloat16)


def with_kernels(
    view: AdapterView, precision: Precision, kernels: Kernels, keep: bool = True
) -> AbstractContextManager[None]:
    """A scope in which steps run with these kernels.

    Args:
        view: The module's adapter.
        precision: The precision of the steps.
        kernels: See `Federation`.
        keep: Whether casts of frozen weights may stay in memory.
    """
    return lean(view, precision in BF16, keep) if kernels == "lean" else nullcontext()
