"""Blocks that are left out: for ten architectures nobody sees the difference; and models where that cannot be."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_fed.adapters.blocks import require_blocks
from lit_fed.adapters.prefix import Prefix, row_keys


class Notes:
    """A memory that says how many of the blocks may be left out, and remembers everything."""

    def __init__(self, depth: int) -> None:
        self.depth, self.rows, self.refused = depth, {}, []

    def prefix(self, running: tuple[int, ...]) -> Any:
        return (running[: self.depth], self) if self.depth and not self.refused else None

    def recall(self, keys: list[bytes], device: torch.device) -> Tensor | None:
        return torch.stack([self.rows[key] for key in keys]) if all(key in self.rows for key in keys) else None

    def keep(self, keys: list[bytes], rows: Tensor) -> None:
        self.rows.update(zip(keys, rows.detach().clone(), strict=True))

    def refuse(self, reason: str) -> None:
        self.refused.append(reason)


def made(arch: Any) -> nn.Module:
    """A model that keeps no keys and values for a next token: training asks for none."""
    model = arch.make()
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    return model


def watched(model: nn.Module) -> list[int]:
    """The blocks that run from now on, one by one."""
    ran: list[int] = []
    for i, block in enumerate(require_blocks(model).blocks):
        inside = next(block.children())
        inside.register_forward_pre_hook(lambda *_, i=i: ran.append(i))
    return ran


@pytest.mark.parametrize("depth", [1, 2, None])
def test_a_model_says_the_same_without_its_first_blocks(arch, depth):
    model = made(arch)
    expected, ran = arch.logits(model), watched(model)
    memory = Notes(depth or arch.num_blocks)
    with Prefix(require_blocks(model), memory).in_place():
        first = arch.logits(model)
        assert ran == list(range(arch.num_blocks))
        ran.clear()
        second = arch.logits(model)
    assert ran == list(range(memory.depth, arch.num_blocks))
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)
    assert not memory.refused
    ran.clear()
    assert torch.equal(arch.logits(model), expected)
    assert ran == list(range(arch.num_blocks))  # nothing is left of it


def test_examples_are_known_in_other_company(arch):
    model, inputs = made(arch), arch.inputs()
    memory, ran = Notes(2), watched(model)
    with torch.no_grad(), Prefix(require_blocks(model), memory).in_place():
        whole = model(**inputs)[0]
        ran.clear()
        some = model(**{name: tensor[[2, 0]] for name, tensor in inputs.items()})[0]
    assert ran == list(range(2, arch.num_blocks))
    torch.testing.assert_close(some, whole[[2, 0]])


@torch.no_grad()
def test_what_a_lean_last_block_leaves_out_is_not_taken_for_all_tokens(arch_named):
    from lit_fed.adapters import AdapterView
    from lit_fed.adapters.lean import lean

    arch = arch_named("vit")
    model = arch.make().requires_grad_(False)
    model.classifier.requires_grad_(True)
    view, pixels = AdapterView(model), arch.inputs()["pixel_values"]
    expected = [arch.logits(model), model.vit(pixels).last_hidden_state]
    with view.blocks.selecting([0, 1]):
        expected.append(arch.logits(model))
    memory = Notes(2)
    with lean(view), Prefix(view.blocks, memory).in_place():
        with view.blocks.selecting([0, 1]):  # the second block is the last: its first token is remembered
            shorter = [arch.logits(model), arch.logits(model)]
        assert [len(row) for row in memory.rows.values()] == [1] * len(pixels)
        found = [arch.logits(model), model.vit(pixels).last_hidden_state, *shorter]
    for one, other in zip(found, [*expected, expected[-1]], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_another_mask_makes_another_example(arch_named, name):
    arch = arch_named(name)
    model, inputs = made(arch), arch.inputs()
    mask = inputs["attention_mask"].clone()
    mask[0, 4] = 0  # of the first example
    memory = Notes(2)
    with torch.no_grad(), Prefix(require_blocks(model), memory).in_place():
        model(**inputs)
        known = len(memory.rows)
        masked = model(**{**inputs, "attention_mask": mask})[0]
        assert (known, len(memory.rows)) == (3, 4)
    assert torch.equal(masked, model(**{**inputs, "attention_mask": mask})[0])


def test_only_blocks_that_run_are_counted(arch_named):
    arch = arch_named("vit")
    model = arch.make()
    stack, ran, memory = require_blocks(model), watched(model), Notes(2)
    stack.select([0, 2, 3])
    with Prefix(stack, memory).in_place():
        expected = arch.logits(model)
        ran.clear()
        assert torch.equal(arch.logits(model), expected)
    assert ran == [3]


def test_a_gradient_ends_where_the_prefix_does(arch_named):
    arch = arch_named("vit")
    model = arch.make().requires_grad_(False)
    blocks = require_blocks(model)
    blocks.blocks[2].requires_grad_(True)
    found = []
    with Prefix(blocks, Notes(2)).in_place():
        for _ in range(2):
            model.zero_grad()
            model(**arch.inputs()).logits.square().sum().backward()
            found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert len(found[0]) == len(list(blocks.blocks[2].parameters()))
    assert all(torch.equal(found[1][name], gradient) for name, gradient in found[0].items())


def test_a_scope_aside_runs_and_remembers_nothing(arch_named):
    arch = arch_named("vit")
    model, memory = arch.make(), Notes(2)
    prefix = Prefix(require_blocks(model), memory)
    with prefix.in_place(), prefix.aside():
        arch.logits(model)
    assert not memory.rows


class Stack(nn.Module):
    """Three blocks in a row, and a head."""

    def __init__(self, layer: Any = nn.Identity) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), layer()) for _ in range(3))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class AddsOutside(Stack):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


class KeepsAll(Stack):
    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for layer in self.layers:
            x = layer(x)
            seen.append(x)
        return self.head(sum(seen))


class GivesObjects(Stack):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Takes() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, object())
        return self.head(x)


class Takes(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)

    def forward(self, x: Tensor, _: Any) -> Tensor:
        return super().forward(x)


class Pairs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None


class ReadsPairs(Stack):
    def __init__(self) -> None:
        super().__init__(Pairs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)[0]
        return self.head(x)


def hooked() -> nn.Module:
    model = Stack()
    model.layers[0].register_forward_hook(lambda *_: None)
    return model


REFUSED = [
    (AddsOutside, "changes hidden states between"),
    (KeepsAll, "keeps hidden states between"),
    (GivesObjects, "given something else than tensors"),
    (ReadsPairs, "return something else"),
    (hooked, "hooks"),
    (lambda: Stack(lambda: nn.Dropout(0.5)), "dropout"),
    (lambda: Stack(lambda: nn.BatchNorm1d(4)), "change while"),
]


@pytest.mark.parametrize(("make", "reason"), REFUSED)
def test_models_where_it_cannot_be_are_run_and_told_why(make, reason):
    torch.manual_seed(0)
    model = make().requires_grad_(False).train()
    memory, x = Notes(2), torch.randn(5, 4)
    prefix = Prefix(require_blocks(model), memory)
    outputs = []
    for inside in (False, True):
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        torch.manual_seed(1)
        with prefix.in_place() if inside else prefix.aside():
            outputs.append([model(x) for _ in range(3)])
        model.load_state_dict(state)
    assert all(torch.equal(one, other) for one, other in zip(*outputs, strict=True))
    assert len(memory.refused) == 1
    assert reason in memory.refused[0]
    assert not memory.rows


def test_what_is_trained_after_all_is_not_left_out():
    model, memory = Stack(), Notes(2)
    with Prefix(require_blocks(model), memory).in_place():
        model(torch.randn(5, 4)).sum().backward()
    assert memory.refused
    assert not memory.rows
    assert all(p.grad is not None for p in model.parameters())


def test_nothing_is_left_out_behind_what_has_a_gradient():
    model, memory = Stack().requires_grad_(False), Notes(2)
    x = torch.randn(5, 4, requires_grad=True)
    with Prefix(require_blocks(model), memory).in_place():
        for _ in range(2):
            model(x).sum().backward()
    assert x.grad is not None
    assert not memory.rows


def test_the_forward_a_block_had_of_its_own_is_there_again():
    model = Stack().requires_grad_(False)
    own = model.layers[0].__dict__["forward"] = lambda x: x + 1
    memory, x = Notes(2), torch.zeros(1, 4)
    expected = model(x)
    with Prefix(require_blocks(model), memory).in_place():
        assert torch.equal(model(x), expected)
    assert model.layers[0].__dict__["forward"] is own
    assert "forward" not in model.layers[1].__dict__


def test_keys_are_of_all_that_belongs_to_an_example():
    x, mask = torch.arange(6.0).view(3, 2), torch.tensor([[True], [True], [False]])
    keys = row_keys((x, mask, 0.5), 3)
    assert len(set(keys)) == 3
    assert row_keys((x[[2, 0]], mask[[2, 0]], 0.5), 2) == [keys[2], keys[0]]
    assert row_keys((x, mask, 0.25), 3)[0] != keys[0]
    assert row_keys((x.double(), mask, 0.5), 3)[0] != keys[0]
    assert row_keys((-x, mask, 0.5), 3)[0] != keys[0]  # -0.0 and 0.0 are equal, and not the same
    assert row_keys({"x": x}, 3) != row_keys({"y": x}, 3)
    assert row_keys((x, object()), 3) is None


def test_what_all_examples_share_is_in_every_key():
    x = torch.arange(6.0).view(3, 2)
    shared = row_keys((x, torch.tensor([1, 2, 3])), 3, least_dims=2)
    other = row_keys((x, torch.tensor([1, 2, 4])), 3, least_dims=2)
    assert not set(shared) & set(other)
    assert row_keys((x[:2], torch.tensor([1, 2, 3])), 2, least_dims=2) == shared[:2]
    labels = row_keys((x, torch.tensor([1, 2, 3])), 3), row_keys((x, torch.tensor([1, 2, 4])), 3)
    assert [a == b for a, b in zip(*labels, strict=True)] == [True, True, False]
