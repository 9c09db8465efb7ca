"""Lean steps are PyTorch's steps with fewer operations, and leave no trace."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lit_fed.adapters import AdapterView, add_lora
from lit_fed.adapters.lean import lean
from lit_fed.adapters.lean_linear import CastOnce, lean_linear
from tests.adapters.conftest import Arch

BF16 = torch.bfloat16


def made(arch: Arch, **lora: Any) -> tuple[nn.Module, AdapterView]:
    model = add_lora(arch.make(), arch.lora(**lora), seed=0)
    view = AdapterView(model)
    random = torch.Generator().manual_seed(1)
    view.write({name: torch.randn(t.shape, generator=random) * 0.1 for name, t in view.tensors().items()})
    return model, view


def autocast(on: bool = True) -> torch.autocast:
    return torch.autocast("cpu", BF16, enabled=on)


def logits_and_gradients(
    arch: Arch, model: nn.Module, view: AdapterView, bf16: bool = True
) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    with autocast(bf16):
        output = model(**arch.inputs())
    logits = output.image_embeds if hasattr(output, "image_embeds") else output.logits
    logits.float().square().mean().backward()
    return logits.detach().float(), {n: p.grad.clone() for n, p in view.parameters().items() if p.grad is not None}


def close(a: Tensor, b: Tensor) -> bool:
    """Apart by a few roundings to eight bits."""
    return float((a - b).norm()) <= 0.04 * float(b.norm()) + 1e-6


def test_it_computes_what_autocast_computes(arch):
    model, view = made(arch)
    expected, gradients = logits_and_gradients(arch, model, view)
    with lean(view):
        logits, found = logits_and_gradients(arch, model, view)
    assert close(logits, expected)
    assert found.keys() == gradients.keys()
    assert all(close(found[name], gradient) for name, gradient in gradients.items())
    assert all(gradient.dtype == torch.float32 for gradient in found.values())


def test_it_computes_what_float32_computes(arch):
    model, view = made(arch)
    expected, gradients = logits_and_gradients(arch, model, view, bf16=False)
    with lean(view):
        logits, found = logits_and_gradients(arch, model, view, bf16=False)
    assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-6)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_afterwards_nothing_is_different(arch):
    model, view = made(arch)
    structure, forwards = repr(model), [m for m in model.modules() if "forward" in m.__dict__]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = arch.logits(model)
    in_autocast = logits_and_gradients(arch, model, view)
    with lean(view):
        assert model.state_dict().keys() == state.keys()
        logits_and_gradients(arch, model, view)
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        assert all(tensor.dtype == state[name].dtype for name, tensor in model.state_dict().items())
    assert repr(model) == structure
    assert torch.equal(arch.logits(model), expected)
    assert [m for m in model.modules() if "forward" in m.__dict__] == forwards
    logits, gradients = logits_and_gradients(arch, model, view)
    assert torch.equal(logits, in_autocast[0])
    assert all(torch.equal(gradients[name], gradient) for name, gradient in in_autocast[1].items())


class Casts(TorchDispatchMode):
    """Counts casts to bfloat16, by the memory that is cast."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == BF16:
            self.seen[args[0].data_ptr()] += 1
        return func(*args, **(kwargs or {}))


def weights_of_linears(model: nn.Module) -> dict[int, str]:
    layers = {name: m for name, m in model.named_modules() if type(m) is nn.Linear and not m.weight.requires_grad}
    return {m.weight.data_ptr(): name for name, m in layers.items() if "lora_" not in name}


@pytest.mark.parametrize("keep", [True, False])
def test_frozen_weights_are_cast_in_the_first_step_alone(arch_named, keep):
    arch = arch_named("vit")
    model, view = made(arch)
    weights = weights_of_linears(model)
    assert len(weights) >= 6  # q, k, v, o and two inner ones
    counts = []
    with lean(view, keep=keep):
        for _ in range(3):
            with Casts() as casts:
                logits_and_gradients(arch, model, view)
            counts.append(sum(number for place, number in casts.seen.items() if place in weights))
    assert counts[0] >= 6
    assert counts[1:] == ([0, 0] if keep else [counts[0]] * 2)


def test_a_frozen_weight_that_changes_is_cast_again():
    layer = nn.Linear(3, 2).requires_grad_(False)
    x = torch.randn(4, 3)
    undo = lean_linear([layer], CastOnce())
    with autocast():
        layer(x)
        with torch.no_grad():
            layer.weight.copy_(torch.ones(2, 3))
            layer.bias.zero_()
        assert torch.equal(layer(x)[:, 0], x.to(BF16).float().sum(1).to(BF16))
    undo()


def test_layers_that_share_an_input_cast_it_once_each_way():
    layers = [nn.Linear(3, 2).requires_grad_(False) for _ in range(3)]
    x = torch.randn(4, 3, requires_grad=True)
    hidden = x * 2
    undo = lean_linear(layers, CastOnce())
    with Casts() as casts, autocast():
        total = sum(layer(hidden).float().sum() for layer in layers)
    undo()
    assert casts.seen[hidden.data_ptr()] == 1
    total.backward()
    expected = sum(layer.weight.to(BF16).float().sum(0) for layer in layers) * 2
    assert torch.allclose(x.grad, expected.expand(4, 3), rtol=2**-6, atol=2**-6)


def test_an_input_that_changed_is_cast_again_and_one_that_is_gone_is_forgotten():
    cast = CastOnce()
    x = torch.ones(2)
    assert cast(x) is cast(x)
    x.add_(1)
    assert torch.equal(cast(x).float(), torch.full((2,), 2.0))
    with torch.no_grad():
        of_constant = cast(x.requires_grad_())
    assert not of_constant.requires_grad
    hidden = x * 2
    assert cast(hidden).requires_grad
    del hidden
    assert cast._known is None
    with torch.inference_mode():
        assert torch.equal(cast(torch.ones(2)), torch.ones(2, dtype=BF16))


@pytest.mark.parametrize(("dtype", "bf16"), [(torch.float32, False), (torch.float32, True), (BF16, True)])
def test_lora_is_the_formula(dtype, bf16):
    """y = W x + b + s B (A x), with gradients of autograd on the same rounded values, in float64."""
    from peft import LoraConfig, inject_adapter_in_model

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    torch.manual_seed(0)
    model = One().requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=3, target_modules=["layer"]), model, "global")
    view = AdapterView(model)
    view.write({name: torch.randn(tensor.shape) for name, tensor in view.tensors().items()})
    base = model.layer.get_base_layer().to(dtype)
    x, g = torch.randn(2, 3, 6).to(BF16), torch.randn(2, 3, 5).to(BF16)
    given = x.to(dtype).requires_grad_()
    with lean(view), autocast(bf16):
        y = model(given)
    assert y.dtype == (BF16 if bf16 else torch.float32)
    assert type(y.grad_fn).__name__ in ("_LoraLinearBackward", "ViewBackward0")
    y.backward(g.to(y.dtype))

    def exact(tensor: Tensor) -> Tensor:
        return tensor.detach().to(BF16 if bf16 else tensor.dtype).double()

    a, b = (exact(p).requires_grad_() for p in view.parameters().values())
    seen = exact(x).requires_grad_()
    expected = seen @ exact(base.weight).T + exact(base.bias) + 1.5 * seen @ a.T @ b.T
    expected.backward(g.double())
    found = [p.grad for p in view.parameters().values()]
    assert all(grad.dtype == torch.float32 for grad in found)
    for one, other in ((y, expected), (given.grad, seen.grad), (found[0], a.grad), (found[1], b.grad)):
        one, other = one.detach().double(), other.detach()
        assert close(one, other) if bf16 else torch.allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("odd", ["dropout", "dora", "disabled", "several", "rows"])
def test_what_is_no_plain_product_is_peft_s_own(arch_named, odd):
    from lit_fed.adapters.blend import blended

    arch = arch_named("vit")
    model, view = made(arch, lora_dropout=0.5 if odd == "dropout" else 0.0, use_dora=odd == "dora")
    view.add_slot("local")
    model.train(odd == "dropout")

    def run() -> Tensor:
        torch.manual_seed(3)
        with autocast(), torch.no_grad():
            if odd == "several":
                with blended(view, {"global": 0.5, "local": 0.25}):
                    return arch.logits(model)
            if odd == "rows":
                rows = len(arch.inputs()["pixel_values"])
                with blended(view, {"global": torch.linspace(0, 1, rows)}):
                    return arch.logits(model)
            view.use(None if odd == "disabled" else "global")
            return arch.logits(model)

    expected = run()
    with lean(view):
        assert close(run().float(), expected.float())
