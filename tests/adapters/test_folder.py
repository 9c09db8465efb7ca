"""What is saved is PEFT's layout: PEFT alone, on a fresh base, gives equal logits."""

import json
import subprocess
import sys

import pytest
import torch
from lightning import LightningModule
from torch import nn

from lit_fed.adapters import AdapterView, add_lora, add_lora_, load_adapter, save_adapter
from lit_fed.core.errors import ConfigError, StateMismatchError


def filled(module, seed=3, slots=()):
    """A view of the module in which each slot does something."""
    view = AdapterView(module)
    for slot in slots:
        view.add_slot(slot)
    random = torch.Generator().manual_seed(seed)
    for slot in view.slots:
        view.write({n: torch.randn(t.shape, generator=random) for n, t in view.read(slot).items()}, slot)
    return view


@pytest.fixture
def bert(arch_named):
    return arch_named("bert")


@pytest.fixture
def view(bert):
    return filled(add_lora(bert.make(), bert.lora(), seed=0).eval())


@pytest.mark.parametrize("slot", ["global", "local"])
def test_peft_on_a_fresh_base_gives_equal_logits(arch, tmp_path, slot):
    from peft import PeftModel

    view = filled(add_lora(arch.make(), arch.lora(), seed=0).eval(), slots=["local"])
    view.use(slot)
    expected = arch.logits(view.module)
    save_adapter(view, tmp_path / "adapter", slot=slot)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]
    assert {p.name for p in (tmp_path / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    loaded = PeftModel.from_pretrained(arch.make(), tmp_path / "adapter").eval()
    assert torch.equal(arch.logits(loaded), expected)
    assert view.active == slot


def test_in_place_folder_fits_the_hugging_face_model(arch, tmp_path):
    from peft import PeftModel

    outer = LightningModule()
    outer.net = arch.make()
    add_lora_(outer, arch.lora(), seed=0)
    outer.eval()
    view = filled(outer)
    save_adapter(view, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(arch.make(), tmp_path / "adapter").eval()
    assert torch.equal(arch.logits(loaded), arch.logits(outer.net))


def test_in_place_folder_names_layers_as_the_hugging_face_model_does(bert, tmp_path):
    """A pattern over paths of the module around it would match nothing in the model itself."""
    from peft import PeftModel

    outer = LightningModule()
    outer.net = bert.make()
    add_lora_(outer, bert.lora(target_modules=r"net\.bert\.encoder\.layer\.[02]\..*query"), seed=0)
    view = filled(outer.eval())
    save_adapter(view, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(bert.make(), tmp_path / "adapter").eval()
    assert torch.equal(bert.logits(loaded), bert.logits(outer.net))


def test_in_place_folder_of_a_module_with_its_own_head(net, tmp_path):
    import copy

    from peft import LoraConfig, PeftModel

    fresh, x = copy.deepcopy(net).eval(), torch.randn(5, 4)
    add_lora_(net, LoraConfig(r=2, target_modules=["stem.0", "layers.1.0"]), seed=0)
    net.eval()
    save_adapter(filled(net), tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    assert torch.equal(loaded(x), net(x))


@pytest.mark.slow
def test_a_fresh_process_gives_equal_logits(bert, view, tmp_path):
    """The base and the adapter from disk, and nothing of ours loaded."""
    expected = bert.logits(view.module)
    bert.make().save_pretrained(tmp_path / "base")
    save_adapter(view, tmp_path / "adapter")
    torch.save(bert.inputs(), tmp_path / "inputs.pt")
    script = f"""
import sys, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
base = AutoModelForSequenceClassification.from_pretrained({str(tmp_path / "base")!r})
model = PeftModel.from_pretrained(base, {str(tmp_path / "adapter")!r}).eval()
with torch.no_grad():
    logits = model(**torch.load({str(tmp_path / "inputs.pt")!r})).logits
assert not any(name.startswith("lit_fed") for name in sys.modules)
torch.save(logits, {str(tmp_path / "logits.pt")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=0, atol=1e-6)


def test_round_trip(arch, tmp_path):
    view = filled(add_lora(arch.make(), arch.lora(), seed=0), slots=["local"])
    state = view.read("local")
    save_adapter(view, tmp_path / "adapter", slot="local")
    load_adapter(view, tmp_path / "adapter")
    assert all(torch.equal(t, state[name]) for name, t in view.read("global").items())


def test_a_given_state_is_saved_and_the_live_one_left(view, bert, tmp_path):
    live = view.read()
    state = {name: torch.full_like(t, 0.5) for name, t in live.items()}
    save_adapter(view, tmp_path / "adapter", state)
    assert all(torch.equal(t, live[name]) for name, t in view.read().items())
    other = AdapterView(add_lora(bert.make(), bert.lora(), seed=1))
    load_adapter(other, tmp_path / "adapter")
    assert all(torch.equal(t, state[name]) for name, t in other.read().items())


def test_saving_leaves_the_module_as_it_was(view, tmp_path):
    view.add_slot("local")
    view.use("local")
    view.train_only("local")
    view.blocks.select([1])
    flags = [p.requires_grad for p in view.module.parameters()]
    save_adapter(view.module, tmp_path / "adapter")
    assert AdapterView(view.module).active == view.active == "local"
    assert view.blocks.selected == (1,)
    assert [p.requires_grad for p in view.module.parameters()] == flags
    assert "bert.encoder.layer.3" in (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes().decode("latin")


def test_the_same_adapter_is_the_same_bytes(view, tmp_path):
    for name in ("one", "two"):
        save_adapter(view, tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    targets = json.loads((tmp_path / "one" / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets)


def test_saving_again_replaces(view, tmp_path):
    save_adapter(view, tmp_path / "adapter")
    (tmp_path / "adapter" / "notes.txt").write_text("kept")
    state = {name: torch.zeros_like(t) for name, t in view.read().items()}
    save_adapter(view, tmp_path / "adapter", state)
    load_adapter(view, tmp_path / "adapter")
    assert not any(t.any() for t in view.read().values())
    assert (tmp_path / "adapter" / "notes.txt").read_text() == "kept"


def test_an_interrupted_save_leaves_the_old_folder(view, tmp_path, monkeypatch):
    import safetensors.torch

    save_adapter(view, tmp_path / "adapter")
    before = {p.name: p.read_bytes() for p in (tmp_path / "adapter").iterdir()}

    def fails(tensors, path, metadata=None):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_file", fails)
    with pytest.raises(OSError, match="disk full"):
        save_adapter(view, tmp_path / "adapter", {name: torch.zeros_like(t) for name, t in view.read().items()})
    assert {p.name: p.read_bytes() for p in (tmp_path / "adapter").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_an_incomplete_or_unknown_state_is_not_saved(view, tmp_path):
    state = view.read()
    with pytest.raises(StateMismatchError, match=r"complete.*head\.bias"):
        save_adapter(view, tmp_path / "adapter", {n: t for n, t in state.items() if n != "head.bias"})
    with pytest.raises(StateMismatchError, match="nothing"):
        save_adapter(view, tmp_path / "adapter", state | {"nothing": torch.zeros(1)})
    assert not (tmp_path / "adapter").exists()


def truncate(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def forget_weights(folder):
    (folder / "adapter_model.safetensors").unlink()


def forget_config(folder):
    (folder / "adapter_config.json").unlink()


def change_alpha(folder):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 99}))


def rename_tensor(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["else"] = tensors.pop("base_model.model.classifier.bias")
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncate, "whole safetensors file"),
        (forget_weights, "whole safetensors file"),
        (forget_config, "settings of a PEFT adapter"),
        (change_alpha, "lora_alpha is 99 in place of 4"),
        (rename_tensor, r"2 names differ, e\.g\. 'base_model\.model\.classifier\.bias'"),
    ],
)
def test_damaged_folders_are_refused_and_nothing_changed(view, tmp_path, damage, says):
    save_adapter(view, tmp_path / "adapter", {name: torch.zeros_like(t) for name, t in view.read().items()})
    damage(tmp_path / "adapter")
    before = view.read()
    with pytest.raises(StateMismatchError, match=says):
        load_adapter(view, tmp_path / "adapter")
    assert all(torch.equal(t, before[name]) for name, t in view.read().items())


def test_another_rank_is_refused(view, bert, tmp_path):
    save_adapter(view, tmp_path / "adapter")
    other = AdapterView(add_lora(bert.make(), bert.lora(r=3), seed=0))
    with pytest.raises(StateMismatchError, match="r is 2 in place of 3"):
        load_adapter(other, tmp_path / "adapter")


def test_plain_parameters_are_saved_beside(net, tmp_path):
    view = filled(net)
    state = view.read()
    save_adapter(view, tmp_path / "adapter")
    assert [p.name for p in (tmp_path / "adapter").iterdir()] == ["other_parameters.safetensors"]
    view.write({name: torch.zeros_like(t) for name, t in state.items()})
    load_adapter(view, tmp_path / "adapter")
    assert all(torch.equal(t, state[name]) for name, t in view.read().items())


def test_a_head_beside_peft_is_saved_too(arch_named, tmp_path):
    arch = arch_named("clip")
    outer = nn.Module()
    outer.backbone = add_lora(arch.make(), arch.lora(modules_to_save=None), seed=0)
    outer.head = nn.Linear(6, 2)
    view = filled(outer)
    state = view.read()
    save_adapter(view, tmp_path / "adapter")
    assert len(list((tmp_path / "adapter").iterdir())) == 3
    view.write({name: torch.zeros_like(t) for name, t in state.items()})
    load_adapter(view, tmp_path / "adapter")
    assert all(torch.equal(t, state[name]) for name, t in view.read().items())


def test_statistics_of_a_head_are_saved_with_it(net, tmp_path):
    from peft import LoraConfig, PeftModel

    net.fc = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2))
    import copy

    fresh, x = copy.deepcopy(net).eval(), torch.randn(5, 4)
    add_lora_(net, LoraConfig(r=2, target_modules=["layers.0.0"]), seed=0)
    net(torch.randn(8, 4))
    net.eval()
    view = AdapterView(net)
    assert "head.0.running_mean" in view.names
    save_adapter(view, tmp_path / "adapter")
    stem = net.stem.state_dict()
    fresh.stem.load_state_dict(stem)  # the frozen stem's statistics are no part of the adapter
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    assert torch.equal(loaded(x), net(x))
    before = view.read()
    net.train()(torch.randn(8, 4))
    load_adapter(view, tmp_path / "adapter")
    assert all(torch.equal(t, before[name]) for name, t in view.read().items())
    assert net.fc.modules_to_save["global"][0].num_batches_tracked.item() == 1


def test_two_tuned_models_have_no_common_folder(arch_named, tmp_path):
    arch = arch_named("bert")
    both = nn.ModuleDict({k: add_lora(arch.make(), arch.lora(), seed=0) for k in ("one", "two")})
    view = AdapterView(both)
    assert len(view.names) == len(set(view.names))
    with pytest.raises(ConfigError, match="one model with adapters to save, but got 2"):
        save_adapter(view, tmp_path / "adapter")
