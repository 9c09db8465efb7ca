r"""Several adapters of one module in one pass: the frozen weights see all rows once, each adapter its own.

A batch is repeated K times, a group of rows for each of K adapters. What adapter k adds to a linear layer is computed
for its group, all groups at once:

.. math:: h^{(k)} = W x^{(k)} + s\, B^{(k)} A^{(k)} x^{(k)},
          \qquad A \in \mathbb{R}^{K \times r \times n}, \; B \in \mathbb{R}^{K \times m \times r}.

What is trained and no LoRA factor (a head, norms) runs once for each group, with the group's own values: it may be of
any kind, and is small. So a result is that of one adapter after another, up to the rounding of other matrix shapes.

`stacked` evaluates adapters that are there. `stacked_parameters` trains them: gradients flow to A, B and the rest, each
of shape (K, ...), and no group's loss depends on another group's part of them.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lit_fed.adapters.layout import GLOBAL
from lit_fed.adapters.lean_lora import few_columns
from lit_fed.adapters.plain_lora import check_plain_products
from lit_fed.adapters.state import AdapterView
from lit_fed.core.errors import ConfigError, StateMismatchError
from lit_fed.core.names import LORA_A, LORA_B, factor_of


@contextmanager
def stacked(view: AdapterView, adapters: Sequence[Mapping[str, Tensor]], num_rows: int) -> Iterator[None]:
    """A scope in which the first of K equal groups of rows runs with the first adapter, and so on; without gradients.

    The module's own values stay as they are.

    Args:
        view: The module's adapter.
        adapters: K states of slot ``"global"``, each with all its names.
        num_rows: Rows of a batch, over all groups; K times those of one.

    Raises:
        StateMismatchError: If an adapter does not fit.
        ConfigError: If a layer is no linear layer with a plain product, sees something else than the rows of the
            batch, or was not run as a module, so that nobody knows which adapter it should have used.
    """
    check_plain_products(view, (view.adapter_name(),), linear=True)
    values = _stack(view, adapters)
    groups = _Groups(len(adapters), num_rows)
    before = view.active
    view.use(GLOBAL)
    with ExitStack() as undo:
        undo.callback(view.use, before)
        _install(view, GLOBAL, values, groups, undo)
        yield
        groups.check()


class Stack:
    """Adapters that are trained side by side.

    Args:
        parameters: Canonical name -> the values in all of them, (K, ...).
        groups: Their groups of rows.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], groups: "_Groups") -> None:
        self.parameters, self._groups = parameters, groups

    def expect(self, num_rows: int) -> None:
        """Say how many rows the next batch has, over all groups; K times those of one."""
        self._groups.num_rows = num_rows

    def check(self) -> None:
        """Raise `ConfigError` if a pass has left out something of the adapters; see `stacked`."""
        self._groups.check()


@contextmanager
def stacked_parameters(
    view: AdapterView, slot: str, adapters: Sequence[Mapping[str, Tensor]], trained: Collection[str]
) -> Iterator[Stack]:
    """A scope in which the module has a slot's parameters K times, (K, ...), and runs K equal groups of rows with them.

    They are where those of one adapter were: an optimizer that is made of ``module.parameters()`` has them. Afterwards
    the module has its own again, unchanged.

    Args:
        view: The module's adapter.
        slot: The slot; the forward runs with it.
        adapters: K states of the slot, all with the same names: those of all layers that run.
        trained: The names that get gradients.

    Raises:
        StateMismatchError: If an adapter does not fit.
        ConfigError: As in `stacked`, or if the slot has running statistics, which are no function of one row.
    """
    for adapter in adapters:
        view.check(adapter, slot)
    live = view.tensors(slot)
    if moving := [name for name in adapters[0] if not isinstance(live[name], nn.Parameter)]:
        raise ConfigError(
            f"Expected an adapter without running statistics, so that several can be trained side by side, but got "
            f"{moving[:3]}. Train one adapter at a time."
        )
    if view.lora_layers:
        check_plain_products(view, (view.adapter_name(slot),), linear=True)
    parameters = {
        name: nn.Parameter(torch.stack([adapter[name] for adapter in adapters]).to(live[name]), name in trained)
        for name in adapters[0]
    }
    groups = _Groups(len(adapters), 0)
    before = view.active
    view.use(slot)
    with ExitStack() as undo:
        undo.callback(view.use, before)
        for owner, names in view.owners(parameters.__contains__, slot):
            for attribute, name in names.items():
                undo.callback(_put, owner, attribute, getattr(owner, attribute))
                _put(owner, attribute, parameters[name])
        _install(view, slot, parameters, groups, undo)
        yield Stack(parameters, groups)


def _install(view: AdapterView, slot: str, values: Mapping[str, Tensor], groups: "_Groups", undo: ExitStack) -> None:
    """Have every layer that holds some of these values use them, each group its own."""
    adapter = view.adapter_name(slot)
    for name, layer in view.lora_layers.items():
        if f"{name}.{LORA_A}" in values:
            layer.__dict__["_disable_adapters"] = True  # put back by `use`
            factors = values[f"{name}.{LORA_A}"], values[f"{name}.{LORA_B}"]
            undo.callback(layer.register_forward_hook(groups.adding(name, *factors, layer.scaling[adapter])).remove)
    for owner, names in view.owners(lambda name: factor_of(name) is None and name in values, slot):
        own = {attribute: values[name] for attribute, name in names.items()}
        owner.forward = groups.in_turn(owner, next(iter(names.values())), own)
        undo.callback(owner.__dict__.pop, "forward")


def _put(owner: nn.Module, attribute: str, value: Tensor) -> None:
    """Have a module use a tensor in place of its own; it need be no parameter, and gradients flow through it."""
    held: dict[str, Any] = owner._parameters if attribute in owner._parameters else owner._buffers
    held[attribute] = value


class _AddProducts(torch.autograd.Function):
    """y (K, n, m), x (K, n, d), A (K, r, d), B (K, m, r), all of one type -> y + s x A^T B^T, group by group."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        u = few_columns(x, a.mT)
        ctx.save_for_backward(x, a, b, u)
        ctx.scaling = scaling
        return torch.baddbmm(y, u, b.mT, alpha=scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, u = ctx.saved_tensors
        for_y, for_x, for_a, for_b, _ = ctx.needs_input_grad
        v = few_columns(grad, b).mul_(ctx.scaling) if for_x or for_a else None
        dx = v @ a if v is not None and for_x else None
        da = v.mT @ x if v is not None and for_a else None
        db = few_columns(grad.mT, u).mul_(ctx.scaling) if for_b else None
        return grad if for_y else None, dx, da, db, None


class _Groups:
    """Equal groups of rows, one for each adapter, and which layers have not seen them yet.

    Args:
        number: Groups.
        num_rows: Rows of all of them.
    """

    def __init__(self, number: int, num_rows: int) -> None:
        self.number, self.num_rows = number, num_rows
        self._unseen: set[str] = set()

    def adding(self, name: str, a: Tensor, b: Tensor, scaling: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        """A hook that adds to a frozen layer's output what its LoRA does: A (K, r, n), B (K, m, r)."""
        self._unseen.add(name)

        def add(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = self._rows(name, args[0])
            device = x.device.type
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else a.dtype
            factors = (tensor.to(dtype) for tensor in (x.reshape(self.number, -1, x.shape[-1]), a, b))
            wide = output.reshape(self.number, -1, output.shape[-1])
            added: Tensor = _AddProducts.apply(wide.to(dtype), *factors, scaling)
            return added.view(output.shape).to(output.dtype)

        return add

    def in_turn(self, owner: nn.Module, name: str, values: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
        """In place of a module's forward: the same for one group after another, with values (K, ...) of their own."""
        self._unseen.add(name)
        plain = owner.forward

        def forward(x: Tensor) -> Tensor:
            outputs = []
            before = {attribute: getattr(owner, attribute) for attribute in values}
            try:
                for rows, *own in zip(
                    self._rows(name, x).chunk(self.number), *(v.unbind() for v in values.values()), strict=True
                ):
                    for attribute, value in zip(values, own, strict=True):
                        _put(owner, attribute, value)
                    outputs.append(plain(rows))
            finally:
                for attribute, value in before.items():
                    _put(owner, attribute, value)
            return torch.cat(outputs)

        return forward

    def check(self) -> None:
        """Raise `ConfigError` if something was not run."""
        if self._unseen:
            raise ConfigError(
                f"Expected everything that is trained to run as a module of its own, but {sorted(self._unseen)[:3]} "
                "did not, so it is not known which of several adapters it used. Evaluate them one after another."
            )

    def _rows(self, name: str, x: Tensor) -> Tensor:
        self._unseen.discard(name)
        if len(x) != self.num_rows:
            raise ConfigError(
                f"Expected `{name}` to see the {self.num_rows} rows of the batch, so that several adapters can run in "
                f"one pass, but it sees {len(x)}. Leave it out of what is trained, or evaluate one after another."
            )
        return x


def _stack(view: AdapterView, adapters: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Name -> the values in all adapters, (K, ...), where the live tensor is, and in its type."""
    for adapter in adapters:
        view.check(adapter)
        if missing := sorted(set(view.names) - adapter.keys()):
            raise StateMismatchError(f"Expected adapters with all names, but one is without {missing[:3]}.")
    return {
        name: torch.stack([adapter[name] for adapter in adapters]).to(live) for name, live in view.tensors().items()
    }
