"""Steps in bfloat16 on a CPU without what is not their arithmetic: casts, small operations, a slow attention."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from lit_fed.adapters.lean_attention import lean_attention
from lit_fed.adapters.lean_linear import CastOnce, lean_linear
from lit_fed.adapters.lean_lora import lean_lora
from lit_fed.adapters.state import AdapterView, all_blocks

__all__ = ["lean"]


@contextmanager
def lean(view: AdapterView, keep: bool = True) -> Iterator[None]:
    """A scope in which steps under bfloat16 autocast on a CPU run so; any other step runs as it does outside.

    No parameter is touched, and nothing is left behind.

    Args:
        view: The module's adapter.
        keep: Whether weights in bfloat16 stay in memory, beside those in float32.
    """
    cast = CastOnce()
    adapted = {id(tensor) for slot in view.slots for tensor in view.tensors(slot).values()}
    with all_blocks(view.blocks), ExitStack() as undo:
        undo.callback(lean_attention(view.module))
        linears = [m for m in view.module.modules() if type(m) is nn.Linear]
        frozen = [m for m in linears if not any(id(p) in adapted for p in m.parameters(recurse=False))]
        undo.callback(lean_linear(frozen, cast, keep))
        undo.callback(lean_lora(view.lora_layers, cast, keep))
        installed = undo.pop_all()
    with installed:
        yield
