"""Canonical names of adapter tensors.

A canonical name says where a tensor belongs and nothing about how it is held: no slot, no wrapper, no rank, and the
same scheme for every architecture.

=============================================  ==========================================================
``blocks.3.attention.q_proj.lora_A``           factor A of the LoRA on a linear layer of block 3
``blocks.3.attention.q_proj.lora_B``           factor B of it
``head.weight``                                the task head
``other.embeddings.projection.lora_A``         anything else that is trained
=============================================  ==========================================================

`lit_fed.adapters` writes these names from the structure of the module; algorithms only ask the functions below.
"""

from typing import Literal

BLOCKS, HEAD, OTHER = "blocks", "head", "other"
LORA_A, LORA_B = "lora_A", "lora_B"


def block_of(name: str) -> int | None:
    """Index of the transformer block (from 0, in the full model) that a tensor belongs to, or `None`."""
    scope, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if scope == BLOCKS else None


def is_head(name: str) -> bool:
    """Whether a tensor belongs to the task head."""
    return name.partition(".")[0] == HEAD


def factor_of(name: str) -> Literal["A", "B"] | None:
    """Which LoRA factor a tensor is, or `None` if it is not one."""
    last = name.rpartition(".")[2]
    return "A" if last == LORA_A else "B" if last == LORA_B else None
