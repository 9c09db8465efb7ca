"""Deltas in frozen weights: what they do, and that nothing is left of them."""

import copy

import pytest
import torch
from torch import nn

from lit_fed.adapters import AdapterView, add_lora
from lit_fed.core.errors import StateMismatchError
from lit_fed.core.names import delta_of, factor_of
from lit_fed.core.products import product
from lit_fed.core.rank import pairs

FLOAT32 = 1e-4  # W + BA in one matrix or in two products, through up to four blocks with weights of order 0.3


def tuned(arch, **lora):
    return AdapterView(add_lora(arch.make(), arch.lora(**lora), seed=0).eval())


def randomised(view):
    random = torch.Generator().manual_seed(3)
    return {name: 0.3 * torch.randn(t.shape, generator=random) for name, t in view.read().items()}


def deltas_of(state):
    """What the LoRA of a state adds, as deltas."""
    return {delta_of(layer): dense(*pair) for layer, pair in pairs(state).items()}


def dense(a, b):
    return product((a, b)).dense().reshape(len(b), *a.shape[1:]).float()


def without_b(state):
    return {name: torch.zeros_like(t) if factor_of(name) == "B" else t for name, t in state.items()}


def frozen(view):
    trained = {id(t) for t in view.tensors().values()}
    return {name: t.clone() for name, t in view.module.state_dict(keep_vars=True).items() if id(t) not in trained}


def check_folding(arch, view):
    """The function with LoRA is the function with its product folded; unfolded, every bit is as before."""
    state, before = randomised(view), frozen(view)
    view.write(state)
    expected = arch.logits(view.module)
    view.write(without_b(state))
    base = arch.logits(view.module)
    view.fold(deltas_of(state))
    torch.testing.assert_close(arch.logits(view.module), expected, rtol=0, atol=FLOAT32)
    assert (expected - base).abs().max() > 100 * FLOAT32  # it is not that nothing happens
    view.fold({})
    assert all(torch.equal(t, before[name]) for name, t in frozen(view).items())
    assert torch.equal(arch.logits(view.module), base)


def test_folded_is_what_lora_does(arch):
    check_folding(arch, tuned(arch))


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        ("vit", {"target_modules": ["q_proj", "projection"]}),  # with the convolution that cuts patches
        ("bert", {"target_modules": ["query", "word_embeddings"]}),
        ("llama", {"use_rslora": True}),
        ("vit", {"r": 3, "rank_pattern": {r"0\.attention\.(.*\.)?q_proj": 1}}),
    ],
)
def test_other_layers_and_scalings(arch_named, name, lora):
    arch = arch_named(name)
    check_folding(arch, tuned(arch, **lora))


@pytest.mark.parametrize("name", ["vit", "gpt2"])
def test_only_what_is_named_is_folded_and_always_from_the_original(arch_named, name):
    view = tuned(arch_named(name))
    before = frozen(view)
    first, second, *_ = layers = sorted(deltas_of(randomised(view)))
    deltas = deltas_of(randomised(view))
    view.fold({first: deltas[first], second: deltas[second]})
    view.fold({second: deltas[second]})
    changed = [key for key, t in frozen(view).items() if not torch.equal(t, before[key])]
    assert len(changed) == 1
    once = frozen(view)[changed[0]]
    for _ in range(3):
        view.fold({second: deltas[second]})
    assert torch.equal(frozen(view)[changed[0]], once)
    scaling = 2.0  # alpha 4, r 2
    added = scaling * (deltas[second].T if name == "gpt2" else deltas[second])
    assert torch.equal(once, before[changed[0]] + added)
    assert len(layers) > 2


def test_blocks_that_do_not_run_are_folded_too(arch_named):
    arch = arch_named("vit")
    view, other = tuned(arch), tuned(arch)
    deltas = deltas_of(randomised(view))
    view.blocks.select([1])
    view.fold(deltas)
    view.blocks.select(None)
    other.fold(deltas)
    assert torch.equal(arch.logits(view.module), arch.logits(other.module))


def test_another_view_finds_the_original(arch_named):
    """One's own module may go from one federation to the next as it was left."""
    view = tuned(arch_named("vit"))
    before = frozen(view)
    view.fold(deltas_of(randomised(view)))
    for module in (view.module, copy.deepcopy(view.module)):
        again = AdapterView(module)
        again.fold(deltas_of(randomised(view)))
        again.fold({})
        assert all(torch.equal(t, before[name]) for name, t in frozen(again).items())


def test_nothing_is_kept_of_layers_that_are_not_folded(arch_named):
    view = tuned(arch_named("vit"))
    first, *_ = deltas = deltas_of(randomised(view))
    kept = lambda: sum("_original_weight" in m.__dict__ for m in view.module.modules())  # noqa: E731
    assert kept() == 0
    view.fold({first: deltas[first]})
    assert kept() == 1
    view.fold({})
    assert kept() == 0


def test_a_model_in_bfloat16_is_rounded_once(arch_named):
    arch = arch_named("vit")
    view = AdapterView(add_lora(arch.make().bfloat16(), arch.lora(), seed=0))
    before = frozen(view)
    name, *_ = deltas = deltas_of(randomised(view))
    view.fold({name: deltas[name]})
    changed = [key for key, t in frozen(view).items() if not torch.equal(t, before[key])]
    expected = (before[changed[0]].float() + 2.0 * deltas[name]).bfloat16()
    assert torch.equal(frozen(view)[changed[0]], expected)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: {**d, "blocks.0.nowhere.delta": torch.zeros(1)}, "'blocks.0.nowhere.delta' belongs to no layer"),
        (lambda d: {name: t.T for name, t in d.items()}, r"has shape \(16, 48\) in place of \(48, 16\)"),
    ],
)
def test_a_misfit_changes_nothing(arch_named, change, says):
    view = tuned(arch_named("gpt2"), target_modules=["c_attn"])
    before = frozen(view)
    with pytest.raises(StateMismatchError, match=says):
        view.fold(change(deltas_of(randomised(view))))
    assert all(torch.equal(t, before[name]) for name, t in frozen(view).items())


def test_rank(arch_named, net):
    assert tuned(arch_named("vit"), r=3).rank == 3
    assert tuned(arch_named("vit"), r=3, rank_pattern={"q_proj": 5}).rank == 5
    view = AdapterView(net)
    assert view.rank == 0
    assert view.fold_problems() == []
    view.fold({})


def test_what_can_be_folded(arch):
    assert tuned(arch).fold_problems() == []


@pytest.mark.parametrize(
    ("name", "lora", "says"),
    [
        ("gpt2", {"target_modules": ["wte"]}, "share their weight"),  # with the output layer
        ("llama", {"alora_invocation_tokens": [1]}, "variant of LoRA"),
    ],
)
def test_what_cannot_be_folded_is_said(arch_named, name, lora, says):
    [problem] = tuned(arch_named(name), **lora).fold_problems()
    assert says in problem
    assert "`lora.target_modules`" in problem


def test_quantized_layers_cannot_be_folded(arch_named):
    view = tuned(arch_named("vit"), target_modules=["q_proj"])
    for layer in (m for m in view.module.modules() if hasattr(m, "lora_A")):
        layer.base_layer.weight = nn.Parameter(torch.zeros(16, 16, dtype=torch.int8), requires_grad=False)
    [problem] = view.fold_problems()
    assert "quantized" in problem
