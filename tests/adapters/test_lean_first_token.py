"""The last block of a vision classifier computes one token, and gives the logits and gradients of all of them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_fed.adapters import AdapterView, add_lora
from lit_fed.adapters.lean import lean
from tests.adapters.conftest import Arch


@pytest.fixture(params=["vit", "deit"])
def vision(request: pytest.FixtureRequest, arch_named: Any) -> Arch:
    return arch_named(request.param)


def made(arch: Arch, **lora: Any) -> tuple[Any, AdapterView]:
    model = add_lora(arch.make(), arch.lora(**lora), seed=0)
    view = AdapterView(model)
    random = torch.Generator().manual_seed(1)
    view.write({name: torch.randn(t.shape, generator=random) * 0.1 for name, t in view.tensors().items()})
    return model, view


class Tokens:
    """How many tokens each block's MLP has seen."""

    def __init__(self, view: AdapterView) -> None:
        self.seen: list[int] = []
        for block in view.blocks.blocks:
            block.mlp.register_forward_hook(lambda _, args, output: self.seen.append(args[0].shape[1]))

    def of(self, run: Any) -> tuple[list[int], Any]:
        self.seen.clear()
        result = run()
        return self.seen[:], result


def step(arch: Arch, model: nn.Module, view: AdapterView) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logits = model(**arch.inputs()).logits
    logits.square().sum().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in view.parameters().items() if p.grad is not None}


@pytest.mark.parametrize("selected", [None, [0], [0, 2]])
def test_one_token_in_the_last_block_that_runs_and_the_same_result(vision, selected):
    model, view = made(vision)
    tokens = Tokens(view)
    with view.blocks.selecting(selected):
        whole, (expected, gradients) = tokens.of(lambda: step(vision, model, view))
    with lean(view), view.blocks.selecting(selected):
        fewer, (logits, found) = tokens.of(lambda: step(vision, model, view))
    assert fewer == [*whole[:-1], 1]
    assert whole[0] > 1
    assert torch.allclose(logits, expected, rtol=1e-5, atol=1e-6)
    assert found.keys() == gradients.keys()
    assert all(torch.allclose(found[n], g, rtol=1e-4, atol=1e-5 * float(g.abs().max())) for n, g in gradients.items())


def test_a_lora_on_every_linear_layer(vision):
    model = add_lora(vision.make(), vision.lora(target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]))
    view = AdapterView(model)
    view.write({name: torch.randn(t.shape) * 0.1 for name, t in view.tensors().items()})
    _, gradients = step(vision, model, view)
    with lean(view):
        _, found = step(vision, model, view)
    assert found.keys() == gradients.keys()
    assert all(torch.allclose(found[n], g, rtol=1e-4, atol=1e-5 * float(g.abs().max())) for n, g in gradients.items())


@pytest.mark.parametrize(
    "asked", ["hidden states", "backbone", "norm", "eager", "dropout", "LoRA's dropout", "watched", "mask"]
)
def test_all_tokens_where_somebody_may_read_them(vision, asked):
    model, view = made(vision, lora_dropout=0.5 if asked == "LoRA's dropout" else 0.0)
    model.train(asked == "LoRA's dropout")
    tokens = Tokens(view)
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    more: dict[str, Any] = {"output_hidden_states": True} if asked == "hidden states" else {}
    if asked == "eager":
        inner.set_attn_implementation("eager")
    if asked == "dropout":
        view.blocks.blocks[-1].dropout.p = 0.5
        model.train()
    if asked == "watched":
        view.blocks.blocks[-1].register_forward_hook(lambda *_: None)
    if asked == "norm":  # where a user's module may take features from
        inner.base_model.layernorm.register_forward_hook(lambda *_: None)
    pixels = vision.inputs()["pixel_values"]
    count = tokens.of(lambda: model(pixels))[0][0]
    if asked == "mask":
        more["attention_mask"] = torch.ones(len(pixels), count, dtype=torch.long)
        more["attention_mask"][:, -1] = 0
    run = inner.base_model if asked == "backbone" else model
    with lean(view):
        seen, output = tokens.of(lambda: run(pixels, **more))
    assert seen == [count] * len(view.blocks)
    if asked == "hidden states":
        assert all(states.shape[1] == count for states in output.hidden_states)
    if asked == "backbone":
        assert output.last_hidden_state.shape[1] == count


def test_dropout_that_is_off_does_not_matter(vision):
    model, view = made(vision)
    view.blocks.blocks[-1].dropout.p = 0.5
    model.eval()
    tokens = Tokens(view)
    with lean(view):
        assert tokens.of(lambda: model(**vision.inputs()))[0][-1] == 1


@pytest.mark.parametrize("name", ["bert", "clip", "clip classifier"])
def test_other_architectures_are_left_alone(arch_named, name):
    arch = arch_named(name)
    model, view = made(arch)
    expected = arch.logits(model)
    with lean(view, bf16=False):
        assert not any("forward" in block.__dict__ for block in view.blocks.blocks)
        assert torch.allclose(arch.logits(model), expected, rtol=1e-4, atol=1e-6)
