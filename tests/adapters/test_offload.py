"""A block that does not run is on disk; nothing else is different, to the bit."""

import copy
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lit_fed.adapters import AdapterView, add_lora
from lit_fed.adapters.offload import BlockStore
from lit_fed.core.errors import StateMismatchError


def opened(view: AdapterView, folder: Path) -> BlockStore:
    store = BlockStore(view, folder)
    store.write()
    return store


def frozen(view: AdapterView, block: int) -> dict[str, nn.Parameter]:
    own = {id(tensor) for tensor in view.tensors().values()}
    return {name: p for name, p in view.blocks.blocks[block].named_parameters() if id(p) not in own}


def bytes_of(view: AdapterView, block: int) -> int:
    """What the frozen weights of a block really take."""
    return sum(p.untyped_storage().nbytes() for p in frozen(view, block).values())


def held(view: AdapterView) -> list[int]:
    """The blocks whose frozen weights are in memory; of the others there is one number a parameter."""
    found = []
    for block, size in enumerate(view.blocks.block_bytes()):
        taken = bytes_of(view, block)
        if taken == size:
            found.append(block)
        else:
            assert taken == sum(p.element_size() for p in frozen(view, block).values())
    return found


def wrapped(arch) -> tuple[nn.Module, AdapterView]:
    model = add_lora(arch.make(), arch.lora(), seed=0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(generator=torch.Generator().manual_seed(0))
    return model, AdapterView(model)


def test_only_what_runs_is_in_memory_and_nothing_else_changes(arch, tmp_path):
    model, view = wrapped(arch)
    plain, plain_view = wrapped(arch)
    everything = list(range(len(view.blocks)))
    before = {name: (p, p.stride(), p.requires_grad) for name, p in model.named_parameters()}
    with opened(view, tmp_path):
        assert held(view) == everything
        for blocks in ([1], [0, 2], None, [0, 1]):
            view.blocks.select(blocks)
            plain_view.blocks.select(blocks)
            assert set(held(view)) <= set(blocks or everything)
            assert torch.equal(arch.logits(model), arch.logits(plain))
            assert held(view) == (blocks or everything)
        view.blocks.select(None)
        assert held(view) == [0, 1]  # the rest is read when it is needed, and so it never may be
    assert held(view) == everything
    after = dict(model.named_parameters())
    assert {name: (p, p.stride(), p.requires_grad) for name, p in after.items()} == before
    assert all(torch.equal(p, after[name]) for name, p in plain_named(plain, plain_view).items())
    assert len(list(tmp_path.iterdir())) == len(everything)


def plain_named(model: nn.Module, view: AdapterView) -> dict[str, nn.Parameter]:
    view.blocks.select(None)
    return dict(model.named_parameters())


def test_the_adapter_is_read_and_written_while_its_block_is_away(arch, tmp_path):
    _, view = wrapped(arch)
    state = view.read()
    changed = {name: value + 1 for name, value in state.items()}
    with opened(view, tmp_path):
        view.blocks.select([1])
        assert all(torch.equal(value, state[name]) for name, value in view.read().items())
        view.write(changed)
        assert held(view) == [1]
    assert all(torch.equal(value, changed[name]) for name, value in view.read().items())


def test_gradients_are_those_of_the_whole_model_in_memory(arch, tmp_path):
    gradients = []
    for offloads in (False, True):
        model, view = wrapped(arch)
        with opened(view, tmp_path) if offloads else nullcontext():
            view.blocks.select([2])
            view.blocks.select([0, 2])
            output = model(**arch.inputs())
            loss = (output.image_embeds if hasattr(output, "image_embeds") else output.logits).square().sum()
            with view.blocks.selecting([1]):  # a look at something else lets go of nothing that backward needs
                pass
            loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() != set()
    assert all(torch.equal(g, gradients[1][name]) for name, g in gradients[0].items())


def test_who_asks_for_the_state_gets_the_weights(arch_named, tmp_path):
    model, view = wrapped(arch_named("vit"))
    before = copy.deepcopy(model.state_dict())
    with opened(view, tmp_path):
        view.blocks.select([0])
        view.blocks.select(None)
        after = copy.deepcopy(model.state_dict())
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def run(arch, model: nn.Module, view: AdapterView, store: BlockStore, blocks: list[int]) -> None:
    """Some blocks, after all have been away but the first."""
    with store:
        view.blocks.select([0])
        view.blocks.select(blocks)
        arch.logits(model)


def fails(*_: object) -> None:
    raise RuntimeError("boom")


def test_everything_is_back_after_an_error(arch_named, tmp_path):
    arch = arch_named("gpt2")
    model, view = wrapped(arch)
    before = {name: p.clone() for name, p in model.named_parameters()}
    hooks = [len(block._forward_pre_hooks) for block in view.blocks.blocks]
    view.blocks.blocks[3].register_forward_hook(fails)
    with pytest.raises(RuntimeError, match="boom"):
        run(arch, model, view, opened(view, tmp_path), [3])
    view.blocks.select(None)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert [len(block._forward_pre_hooks) for block in view.blocks.blocks] == hooks
    view.blocks.select([0])
    assert held(view) == [0, 1, 2, 3]


def test_a_file_that_is_gone(arch_named, tmp_path):
    arch = arch_named("bert")
    model, view = wrapped(arch)
    store = opened(view, tmp_path)
    (tmp_path / "block_2.safetensors").unlink()
    with pytest.raises(StateMismatchError, match=r"block_2\.safetensors.*weights of block 2"):
        run(arch, model, view, store, [1, 2])


class Tied(nn.Module):
    """Two blocks share a weight, one shares its bias with the stem; one weight lies transposed in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 6), nn.Linear(6, 2)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)) for _ in range(3))
        self.layers[1][0].weight = self.layers[0][0].weight
        self.layers[2][0].bias = self.stem.bias
        self.layers[2][1].weight = nn.Parameter(torch.randn(6, 6).t())
        self.requires_grad_(False)
        self.head.requires_grad_(True)
        self.layers[0][1].bias.requires_grad_(True)

    def head_module(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


def test_what_is_shared_or_trained_stays_in_memory(tmp_path):
    model = Tied()
    view, before, x = AdapterView(model), copy.deepcopy(model.state_dict()), torch.randn(3, 6)
    expected = model(x)
    transposed = model.layers[2][1].weight.stride()
    assert transposed == (1, 6)
    with opened(view, tmp_path):
        view.blocks.select([1])
        blocks = view.blocks.blocks
        small = {name for i in (0, 2) for name, p in _named(blocks, i) if p.untyped_storage().nbytes() == 4}
        assert small == {"0.0.bias", "0.1.weight", "2.0.weight", "2.1.weight", "2.1.bias"}
        view.blocks.select(None)
        assert torch.equal(model(x), expected)
    assert model.layers[2][1].weight.stride() == transposed
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def _named(blocks: tuple[nn.Module, ...], block: int) -> list[tuple[str, nn.Parameter]]:
    return [(f"{block}.{name}", p) for name, p in blocks[block].named_parameters()]


def test_training_goes_on_after_inference_mode(arch_named, tmp_path):
    arch = arch_named("vit")
    model, view = wrapped(arch)
    with opened(view, tmp_path):
        view.blocks.select([0])
        view.blocks.select(None)
        with torch.inference_mode():
            model(**arch.inputs())
        model(**arch.inputs()).logits.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_any_precision(arch_named, tmp_path, dtype):
    arch = arch_named("llama")
    model = arch.make().to(dtype)
    before = copy.deepcopy(model.state_dict())
    view = AdapterView(add_lora(model, arch.lora(), seed=0))
    with opened(view, tmp_path):
        view.blocks.select([3])
        assert held(view) == [3]
        view.blocks.select(None)
    own = {name.replace(".base_layer", ""): p for name, p in model.named_parameters()}
    assert all(torch.equal(own[name], value) and own[name].dtype == dtype for name, value in before.items())
