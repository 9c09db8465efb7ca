"""Steps without what is not their arithmetic: casts, small operations, a slow attention, results that nobody reads."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from lit_fed.adapters.lean_attention import lean_attention
from lit_fed.adapters.lean_first_token import lean_first_token
from lit_fed.adapters.lean_linear import CastOnce, lean_linear
from lit_fed.adapters.lean_lora import lean_lora
from lit_fed.adapters.state import AdapterView, all_blocks

__all__ = ["lean"]


@contextmanager
def lean(view: AdapterView, bf16: bool = True, keep: bool = True) -> Iterator[None]:
    """A scope in which steps run so.

    The last block of a vision transformer computes what its head reads, anywhere. On a CPU LoRA is one function, in
    float32 and under bfloat16 autocast, and under that linear layers and attention are lean too. Any other step runs as
    it does outside. No parameter is touched, and nothing is left behind.

    Args:
        view: The module's adapter.
        bf16: Whether there are steps under bfloat16 autocast.
        keep: Whether weights in bfloat16 stay in memory, beside those in float32.
    """
    cast = CastOnce()
    with all_blocks(view.blocks), ExitStack() as undo:
        undo.callback(lean_lora(view.lora_layers, cast, keep))
        undo.callback(lean_first_token(view.module, view.blocks))
        if bf16:
            undo.callback(lean_attention(view.module))
            undo.callback(lean_linear(_frozen_linears(view), cast, keep))
        installed = undo.pop_all()
    with installed:
        yield


def _frozen_linears(view: AdapterView) -> list[nn.Linear]:
    """Linear layers of which no slot has a parameter."""
    adapted = {id(tensor) for slot in view.slots for tensor in view.tensors(slot).values()}
    linears = [m for m in view.module.modules() if type(m) is nn.Linear]
    return [m for m in linears if not any(id(p) in adapted for p in m.parameters(recurse=False))]
