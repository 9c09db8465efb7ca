import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lit_fed.adapters import AdapterView, add_slot, attach_gate, load_adapter, save_adapter
from lit_fed.adapters.gate import Gate, feature_width, require_gate, width_of
from lit_fed.core.errors import ConfigError
from lit_fed.core.names import is_gate
from lit_fed.modules import CausalLM
from tests.engine.tiny import Net, tiny_vit

NAMES = {f"gate.{name}.{kind}" for name in ("adapter.down", "adapter.up", "head") for kind in ("weight", "bias")}


def built(bottleneck=4):
    module = tiny_vit()
    module.configure_model()
    add_slot(module, "local")
    attach_gate(module, bottleneck)
    return module


def test_it_starts_undecided_and_its_weights_sum_to_one():
    torch.manual_seed(0)
    gate, u = Gate(8, 4), torch.randn(5, 8)
    assert torch.equal(gate(u), torch.full((5, 2), 0.5))
    for parameter in gate.parameters():
        nn.init.normal_(parameter, std=0.3)  # far from 0 and 1
    torch.testing.assert_close(gate(u).sum(1), torch.ones(5))
    assert gate(u).std(0).min() > 0


def test_it_is_what_the_equations_say():
    """D = 2, width 1: LN of (1, 3) is (-1, 1); W_down (2, 1) and bias 0.5 give -0.5; V picks h_0 and h_1 - 1."""
    gate = Gate(2, 1)
    with torch.no_grad():
        gate.adapter["down"].weight.copy_(torch.tensor([[2.0, 1.0]]))
        gate.adapter["down"].bias.fill_(0.5)
        gate.adapter["up"].weight.copy_(torch.tensor([[10.0], [-10.0]]))
        gate.head.weight.copy_(torch.eye(2))
        gate.head.bias.copy_(torch.tensor([0.0, -1.0]))
    hidden = -0.5 * 0.3085375387  # GELU(-0.5) = -0.5 Phi(-0.5)
    expected = torch.tensor([[1 + 10 * hidden, 3 - 10 * hidden - 1]]).softmax(1)
    torch.testing.assert_close(gate(torch.tensor([[1.0, 3.0]])), expected, rtol=1e-3, atol=1e-6)


def test_its_size_is_that_of_the_budget():
    # two linear maps with biases between 512 and 64, and one to 2: no other parameters
    assert sum(p.numel() for p in Gate(512, 64).parameters()) == 512 * 64 + 64 + 64 * 512 + 512 + 2 * 512 + 2 == 67_138


def test_it_belongs_to_slot_global_under_names_of_its_own():
    view = AdapterView(built())
    assert {name for name in view.names if is_gate(name)} == NAMES
    assert not any(map(is_gate, view.tensors("local")))
    assert view.plain_names == tuple(sorted(NAMES))
    assert {name for name in view.names if not is_gate(name)} == set(view.tensors("local"))
    assert view.tensors()["gate.adapter.down.weight"].shape == (4, 8)
    assert width_of(view.tensors()) == 4
    assert width_of(view.tensors("local")) is None


def test_two_slots_are_trained_at_once_and_nothing_else():
    view = AdapterView(module := built())
    view.train_only("local", lambda name: name == "head.bias", {"global": is_gate})
    trained = {id(p) for p in module.parameters() if p.requires_grad}
    assert trained == {id(view.tensors("local")["head.bias"]), *(id(view.tensors()[name]) for name in NAMES)}
    view.train_only("local", beside={"global": None})
    assert {id(p) for p in module.parameters() if p.requires_grad} == {
        id(p) for slot in view.slots for p in view.parameters(slot).values()
    }


def test_it_can_be_replaced_and_taken_away():
    module = built()
    attach_gate(module, 3)
    assert AdapterView(module).tensors()["gate.adapter.down.weight"].shape == (3, 8)
    attach_gate(module, None)
    assert not any(map(is_gate, AdapterView(module).names))
    with pytest.raises(ConfigError, match="has none"):
        require_gate(module)


def test_a_saved_adapter_with_a_gate_fits_a_module_without(tmp_path):
    view = AdapterView(built())
    save_adapter(view, tmp_path / "a")
    without = tiny_vit()
    without.configure_model()
    load_adapter(without, tmp_path / "a")
    found = AdapterView(without).read()
    assert found.keys() == view.read().keys() - NAMES
    assert all(torch.equal(tensor, view.read()[name]) for name, tensor in found.items())


class Featured(pl.LightningModule):
    def __init__(self, width=None):
        super().__init__()
        self.body = nn.Linear(3, 6)
        if width:
            self.feature_width = width

    def features(self, batch):
        return self.body(batch)


def test_how_wide_features_are():
    module = tiny_vit()
    module.configure_model()
    assert feature_width(module) == 8
    assert feature_width(Featured(6)) == 6
    llama = {
        "model_type": "llama",
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 11,
    }
    language = CausalLM(config=llama)
    language.configure_model()
    assert (
        feature_width(language) == language.features({"input_ids": torch.ones(2, 3, dtype=torch.int64)}).shape[1] == 8
    )
    declared = Featured()
    declared.head_module = nn.Linear(6, 2)
    assert feature_width(declared) == 6


def test_what_has_no_place_for_a_gate_is_told():
    with pytest.raises(ConfigError, match="features"):
        attach_gate(Net(), 4)
    with pytest.raises(ConfigError, match="feature_width"):
        attach_gate(Featured(), 4)
    taken = Featured(6)
    taken.gate = nn.Linear(1, 1)
    with pytest.raises(ConfigError, match="Rename"):
        attach_gate(taken, 4)
    attach_gate(taken, None)
    assert isinstance(taken.gate, nn.Linear)
