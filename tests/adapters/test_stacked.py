"""Stacked adapters against the same adapters, one after another."""

import pytest
import torch
from torch import nn

from lit_fed.adapters import AdapterView, add_lora, add_lora_
from lit_fed.adapters.stacked import stacked, stacked_parameters
from lit_fed.core.errors import ConfigError, StateMismatchError

FLOAT32 = 1e-5  # the same sums in matrices of other shapes
K = 4


def tuned(arch, **lora):
    return AdapterView(add_lora(arch.make(), arch.lora(**lora), seed=0).eval())


def candidates(view, number=K):
    random = torch.Generator().manual_seed(3)
    return [
        {name: 0.3 * torch.randn(t.shape, generator=random) for name, t in view.read().items()} for _ in range(number)
    ]


def repeated(arch):
    return {name: tensor.repeat(K, *[1] * (tensor.ndim - 1)) for name, tensor in arch.inputs().items()}


def said_of(arch, view, inputs):
    with torch.no_grad():
        output = view.module(**inputs)
    return output.image_embeds if hasattr(output, "image_embeds") else output.logits


def one_after_another(arch, view, adapters):
    found = []
    for adapter in adapters:
        view.write(adapter)
        found.append(said_of(arch, view, arch.inputs()))
    return torch.cat(found)


def check_stacked(arch, view, num_rows):
    with torch.no_grad(), stacked(view, candidates(view), num_rows):
        said_of(arch, view, repeated(arch))


def check(arch):
    view = tuned(arch)
    adapters = candidates(view)
    expected = one_after_another(arch, view, adapters)
    with torch.no_grad(), stacked(view, adapters, 3 * K):
        said = said_of(arch, view, repeated(arch))
    torch.testing.assert_close(said, expected, rtol=0, atol=FLOAT32)
    assert (expected[:3] - expected[3:6]).abs().max() > 100 * FLOAT32
    # Nothing is left of it.
    view.write(adapters[0])
    assert torch.equal(said_of(arch, view, arch.inputs()), expected[:3])
    assert not any("forward" in module.__dict__ or module._forward_hooks for module in view.module.modules())


def test_a_pass_of_all_is_a_pass_each(arch):
    check(arch)


def test_heads_of_any_kind(classifier):
    check(classifier)


def test_it_is_undone_after_an_error(arch_named):
    arch = arch_named("vit")
    view = tuned(arch)
    before = said_of(arch, view, arch.inputs())
    with pytest.raises(ConfigError, match=r"to see the 5 rows of the batch.*but it sees 12"):
        check_stacked(arch, view, 5)
    assert torch.equal(said_of(arch, view, arch.inputs()), before)


def test_adapters_are_whole(arch_named):
    view = tuned(arch_named("vit"))
    adapters = candidates(view)
    lacking = {name: tensor for name, tensor in adapters[1].items() if name != "head.bias"}
    with pytest.raises(StateMismatchError, match=r"without \['head.bias'\]"), stacked(view, [adapters[0], lacking], 6):
        pass
    unknown = {**adapters[0], "nobody": torch.zeros(1)}
    with pytest.raises(StateMismatchError, match="unknown are nobody"), stacked(view, [unknown], 3):
        pass


@pytest.mark.parametrize("lora", [{"use_dora": True}, {"target_modules": ["embed_tokens"]}])
def test_layers_that_are_no_plain_product_are_named(arch_named, lora):
    view = tuned(arch_named("llama"), **lora)
    said = r"Expected linear layers whose LoRA adds the product BA alone.*\['"
    with pytest.raises(ConfigError, match=said), stacked(view, candidates(view), 12):
        pass


class Direct(nn.Module):
    """A head whose weight is used without running it as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(4, 6), nn.Linear(6, 2)
        self.head_module = self.fc

    def forward(self, x):
        return self.body(x) @ self.fc.weight.T


def test_what_is_not_run_as_a_module_is_named():
    from peft import LoraConfig

    module = Direct()
    add_lora_(module, LoraConfig(r=2, target_modules=["body"]), seed=0)
    view = AdapterView(module.eval())
    said = r"to run as a module of its own, but \['head\."
    with pytest.raises(ConfigError, match=said), torch.no_grad(), stacked(view, candidates(view, 2), 6):
        module(torch.ones(6, 4))


def test_gradients_are_each_adapters_own(arch):
    """Of a loss that is a sum over groups, against one adapter after another; the module is as it was afterwards."""
    view = tuned(arch)
    adapters = candidates(view)
    before = view.tensors()
    with stacked_parameters(view, "global", adapters, view.names) as stack:
        stack.expect(3 * K)
        assert {p.shape[0] for p in view.module.parameters() if p.requires_grad} == {K}
        output = view.module(**repeated(arch))
        said = output.image_embeds if hasattr(output, "image_embeds") else output.logits
        stack.check()
        found = torch.autograd.grad(said.square().sum(), list(stack.parameters.values()))
    assert all(tensor is before[name] for name, tensor in view.tensors().items())
    assert not any("forward" in module.__dict__ or module._forward_hooks for module in view.module.modules())
    for k, adapter in enumerate(adapters):
        view.write(adapter)
        output = view.module(**arch.inputs())
        said = output.image_embeds if hasattr(output, "image_embeds") else output.logits
        parameters = view.parameters()
        own = dict(zip(parameters, torch.autograd.grad(said.square().sum(), list(parameters.values())), strict=True))
        for name, gradient in zip(stack.parameters, found, strict=True):
            torch.testing.assert_close(gradient[k], own[name], rtol=1e-3, atol=FLOAT32 * float(own[name].abs().max()))
