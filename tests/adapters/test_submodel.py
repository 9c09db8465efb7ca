"""A sub-model from files is the whole model with those blocks selected, and needs no others."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from lit_fed.adapters import AdapterView, add_lora, find_blocks, load_submodel
from lit_fed.assets import embedded_model_path
from lit_fed.core.errors import ConfigError
from lit_fed.core.names import block_of, in_block


def saved(model: nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def keep_only(folder: Path, blocks: list[int]) -> None:
    """Give every weight a file of its own, and delete those of all other blocks."""
    from safetensors.torch import load_file, save_file

    index = {}
    for i, (name, value) in enumerate(load_file(folder / "model.safetensors").items()):
        index[name] = f"{i}.safetensors"
        number = re.search(r"\d+", name)
        if number is None or int(number[0]) in blocks:
            save_file({name: value}, folder / index[name])
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


@pytest.mark.parametrize("blocks", [[0, 2], [1]])
def test_it_is_the_model_with_these_blocks(arch, tmp_path, blocks):
    model = arch.make()
    sub = load_submodel(type(model), saved(model, tmp_path), blocks)
    with find_blocks(model).selecting(blocks):
        expected = arch.logits(model)
        size = sum(p.numel() for p in model.parameters())
    assert torch.equal(arch.logits(sub), expected)
    assert sum(p.numel() for p in sub.parameters()) == size


def test_other_blocks_are_not_read(arch, tmp_path):
    model = arch.make()
    keep_only(saved(model, tmp_path), [1, 2])
    sub = load_submodel(type(model), tmp_path, [1, 2])
    with find_blocks(model).selecting([1, 2]):
        assert torch.equal(arch.logits(sub), arch.logits(model))
    with pytest.raises(FileNotFoundError):
        load_submodel(type(model), tmp_path, [0])


def test_an_adapter_goes_from_the_whole_model_to_the_sub_model_and_back(arch_named, tmp_path):
    arch, blocks = arch_named("vit"), [1, 3]
    whole = AdapterView(add_lora(arch.make(), arch.lora(), seed=0))
    sub = AdapterView(add_lora(load_submodel(type(arch.make()), saved(arch.make(), tmp_path), blocks), arch.lora()))
    here = {name: in_block(name, blocks.index(block_of(name))) for name in whole.names if block_of(name) in blocks}
    here |= {name: name for name in whole.names if block_of(name) is None}
    state = {name: value + 0.1 for name, value in whole.read().items()}
    whole.write(state)
    sub.write({here[name]: value for name, value in state.items() if name in here})
    with whole.blocks.selecting(blocks):
        assert torch.equal(arch.logits(sub.module.eval()), arch.logits(whole.module.eval()))
    assert sorted(here.values()) == list(sub.names)


def test_the_embedded_model_with_a_new_head():
    from transformers import ViTForImageClassification

    with torch.random.fork_rng():
        sub = load_submodel(
            ViTForImageClassification, embedded_model_path(), [0, 5, 11], num_labels=7, dtype=torch.float32
        )
        whole = ViTForImageClassification.from_pretrained(embedded_model_path(), num_labels=7, dtype=torch.float32)
    with find_blocks(whole).selecting([0, 5, 11]):
        same = {name: p for name, p in whole.named_parameters() if "classifier" not in name}
    own = {name: p for name, p in sub.named_parameters() if "classifier" not in name}
    assert own.keys() == same.keys()
    assert all(torch.equal(p, same[name]) for name, p in own.items())
    assert sub.classifier.out_features == 7


@pytest.mark.parametrize("blocks", [[], [2, 1], [0, 0], [4], [-1]])
def test_impossible_blocks_are_refused(arch_named, tmp_path, blocks):
    model = arch_named("bert").make()
    with pytest.raises(ConfigError, match="from 0 to 3, ascending"):
        load_submodel(type(model), saved(model, tmp_path), blocks)


def test_files_that_do_not_fit_are_refused(arch_named, tmp_path):
    from safetensors.torch import load_file, save_file

    model = arch_named("llama").make()
    weights = load_file(saved(model, tmp_path) / "model.safetensors")
    inside = {name: value for name, value in weights.items() if ".1.mlp.up_proj" not in name}
    save_file(inside, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"are not there"):
        load_submodel(type(model), tmp_path, [0, 1])
    inside = {name: value for name, value in weights.items() if ".2." not in name}
    save_file(inside, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"numbered from 0 to 3 at one place"):
        load_submodel(type(model), tmp_path, [0, 1])
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"hold `model\.safetensors`"):
        load_submodel(type(model), tmp_path, [0, 1])
