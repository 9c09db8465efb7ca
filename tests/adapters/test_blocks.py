"""Blocks are found by structure, and a sub-model is the model whose other blocks are the identity."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from lightning import LightningModule
from torch import nn

from lit_fed.adapters import find_blocks, require_blocks
from lit_fed.core.errors import ConfigError


@contextmanager
def identity(blocks: list[nn.Module]) -> Iterator[None]:
    """Make blocks hand on what they get, whatever form they return it in."""

    def hook(block: nn.Module, args: tuple, kwargs: dict, output: object) -> object:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handles = [block.register_forward_hook(hook, with_kwargs=True) for block in blocks]
    yield
    for handle in handles:
        handle.remove()


def test_right_number_found(arch):
    model = arch.make()
    stack = find_blocks(model)
    assert len(stack) == arch.num_blocks
    assert tuple(model.get_submodule(stack.path)) == stack.blocks
    expected = tuple(sum(p.numel() * 4 for p in block.parameters()) for block in stack.blocks)
    assert stack.block_bytes() == expected


def test_found_inside_peft_and_lightning(arch):
    from lit_fed.adapters import add_lora

    model = arch.make()
    inside = find_blocks(model).blocks
    outer = LightningModule()
    outer.net = add_lora(model, arch.lora(), seed=0)
    stack = find_blocks(outer)
    assert stack.blocks == inside
    assert outer.get_submodule(stack.path) is model.get_submodule(find_blocks(model).path)


def test_block_bytes_are_those_of_the_frozen_weights(arch):
    from lit_fed.adapters import add_lora

    model = arch.make()
    before = find_blocks(model).block_bytes()
    assert find_blocks(add_lora(model, arch.lora(), seed=0)).block_bytes() == before


@pytest.mark.parametrize("chosen", [(0, 2), (1, 2), (2,)])
def test_submodel_is_the_model_with_identities(arch, chosen):
    model = arch.make()
    stack = find_blocks(model)
    others = [block for i, block in enumerate(stack.blocks) if i not in chosen]
    with identity(others):
        expected = arch.logits(model)
    assert not torch.equal(expected, arch.logits(model))
    calls = []
    handles = [block.register_forward_hook(lambda m, a, o: calls.append(m)) for block in stack.blocks]
    with stack.selecting(chosen):
        assert stack.selected == chosen
        torch.testing.assert_close(arch.logits(model), expected, rtol=0, atol=0)
    for handle in handles:
        handle.remove()
    assert calls == [stack.blocks[i] for i in chosen]


def test_restored_exactly(arch):
    model = arch.make()
    before = arch.logits(model)
    stack = find_blocks(model)
    original = model.get_submodule(stack.path)
    names = [name for name, _ in model.named_parameters()]
    config, position = str(model.config), [getattr(m, "layer_idx", None) for m in model.modules()]
    stack.select([2, 0])
    assert stack.selected == (0, 2)
    assert len(list(model.parameters())) < len(names)
    stack.select([1])
    stack.select(None)
    assert model.get_submodule(stack.path) is original
    assert tuple(original) == stack.blocks
    assert [name for name, _ in model.named_parameters()] == names
    assert (str(model.config), [getattr(m, "layer_idx", None) for m in model.modules()]) == (config, position)
    assert torch.equal(arch.logits(model), before)


def test_hidden_states_and_gradients_of_a_submodel(arch):
    model = arch.make()
    stack = find_blocks(model)
    stack.select([0, 2])
    output = model(**arch.inputs(), output_hidden_states=True)
    assert len(output.hidden_states) == 3  # the embeddings and two blocks
    output.hidden_states[-1].sum().backward()
    stack.select(None)
    reached = [any(p.grad is not None for p in block.parameters()) for block in stack.blocks]
    assert reached == [i in (0, 2) for i in range(len(stack))]


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "qwen3"])
def test_submodel_generates_with_a_cache(arch_named, name):
    arch = arch_named(name)
    model = arch.make()
    tokens = arch.inputs()["input_ids"][1:2]
    with find_blocks(model).selecting([1, 2]):
        cached, plain = (
            model.generate(tokens, max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=cache, pad_token_id=0)
            for cache in (True, False)
        )
    assert torch.equal(cached, plain)


def test_left_out_blocks_follow_train_and_eval(arch):
    model = arch.make()
    stack = find_blocks(model)
    stack.select([0])
    model.train()
    stack.select([1, 2])
    assert all(m.training for i in (1, 2) for m in stack.blocks[i].modules())
    model.eval()
    stack.select(None)
    assert not any(m.training for m in model.modules())


def test_selecting_puts_the_former_selection_back(net):
    stack = find_blocks(net)
    stack.select([1])
    with stack.selecting(None):
        assert net.layers[0] is stack.blocks[0]
    assert list(net.layers) == [stack.blocks[1]]
    with pytest.raises(RuntimeError, match="boom"), stack.selecting([0, 2]):
        raise RuntimeError("boom")
    assert stack.selected == (1,)
    assert find_blocks(net) is stack


def test_every_holder_of_the_list_sees_the_selection(net):
    net.alias = net.layers
    with find_blocks(net).selecting([2]):
        assert len(net.alias) == len(net.layers) == 1
    assert len(net.alias) == 3


@pytest.mark.parametrize("indices", [[], [0, 0], [3], [-1]])
def test_impossible_selections_are_refused(net, indices):
    stack = find_blocks(net)
    with pytest.raises(ConfigError, match=r"from 0 to 2.*3 blocks"):
        stack.select(indices)
    assert stack.selected == (0, 1, 2)


def make_list(count: int, width: int = 4) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(width, width) for _ in range(count))


def test_the_largest_list_counts_and_the_outer_one():
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = make_list(3)

    root = nn.ModuleDict({"small": make_list(4), "layers": nn.ModuleList(Layer() for _ in range(2))})
    stack = find_blocks(root)
    assert stack.path == "layers"
    assert len(stack) == 2


def test_the_tuned_model_counts_not_a_larger_frozen_one(arch_named):
    from lit_fed.adapters import add_lora

    teacher = make_list(5, 200)
    student = add_lora(arch_named("bert").make(), arch_named("bert").lora(), seed=0)
    stack = find_blocks(nn.ModuleDict({"teacher": teacher, "student": student}))
    assert stack.path.startswith("student.")


@pytest.mark.parametrize(
    ("root", "reason"),
    [
        (nn.Linear(2, 2), "none"),
        (nn.ModuleDict({"a": make_list(2), "b": make_list(2)}), r"`a` \(2 equal entries.*`b` \(2 equal"),
        (nn.ModuleDict({"a": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 3)])}), r"`a` \(entries differ"),
        (nn.ModuleDict({"a": nn.ModuleList([nn.Linear(2, 2), nn.Bilinear(2, 2, 2)])}), r"`a` \(entries differ"),
        (nn.ModuleDict({"a": make_list(1)}), r"`a` \(fewer than two"),
        (nn.ModuleDict({"a": nn.ModuleList([nn.ReLU(), nn.ReLU()])}), r"`a` \(no parameters"),
    ],
    ids=["no list", "ambiguous", "shapes", "classes", "single", "empty"],
)
def test_why_there_are_no_blocks(root, reason):
    assert find_blocks(root) is None
    with pytest.raises(ConfigError, match=reason):
        require_blocks(root)


def test_required_blocks_are_those_found(net):
    assert require_blocks(net).path == "layers"
