"""LoRA goes where it was asked for, from a seed of its own, and refuses what it cannot do before touching the model."""

import warnings

import pytest
import torch
from lightning import LightningModule
from torch import nn

from lit_fed.adapters import AdapterView, add_lora, add_lora_, add_slot
from lit_fed.core.errors import ConfigError
from lit_fed.core.names import factor_of, is_head


class Classifier(LightningModule):
    """A user's own module: a backbone, a head, and something else with parameters."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.output = nn.Linear(6, 2)
        self.scale = nn.Parameter(torch.ones(1))

    def head_module(self) -> nn.Module:
        return self.output

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return self.output(self.backbone(**inputs).image_embeds) * self.scale


@pytest.fixture
def own(arch_named) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        return Classifier(arch_named("clip").make()).eval()


@pytest.mark.usefixtures("global_rng_untouched")
def test_initial_values_come_from_the_seed(arch):
    first, again, other = (AdapterView(add_lora(arch.make(), arch.lora(), seed=s)).read() for s in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(not torch.equal(first[name], other[name]) for name in first if factor_of(name) == "A")
    assert all(not first[name].any() for name in first if factor_of(name) == "B")


def test_without_a_seed_the_global_generator_is_used(arch_named):
    arch = arch_named("vit")
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(AdapterView(add_lora(arch.make(), arch.lora())).read())
    torch.rand(1)
    states.append(AdapterView(add_lora(arch.make(), arch.lora())).read())
    name = "blocks.0.attention.q_proj.lora_A"
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


def test_only_the_adapter_is_trainable(arch):
    model = add_lora(arch.make(), arch.lora(), seed=0)
    ids = {id(p) for p in AdapterView(model).parameters().values()}
    assert {id(p) for p in model.parameters() if p.requires_grad} == ids


def test_settings_are_left_as_they_were(arch):
    settings = arch.lora()
    before = settings.to_dict()
    add_lora(arch.make(), settings, seed=0)
    assert settings.to_dict() == before


def test_all_linear_layers_but_the_heads(arch):
    model = add_lora(arch.make(), arch.lora(target_modules="all-linear"), seed=0)
    names = [name for name in AdapterView(model).names if factor_of(name)]
    blocks = {name for name in names if name.startswith("blocks")}
    assert blocks
    assert not any(is_head(name) or name.startswith("other.lm_head") for name in names)


@pytest.mark.parametrize(("name", "layer"), [("bert", "query"), ("gpt2", "c_attn"), ("llama", "q_proj")])
def test_targets_are_those_peft_knows_for_the_architecture(arch_named, name, layer):
    arch = arch_named(name)
    outer = LightningModule()
    outer.net = arch.make()
    add_lora_(outer, arch.lora(target_modules=None), seed=0)
    assert any(f".{layer}.lora_A" in name for name in AdapterView(outer).names)


@pytest.mark.filterwarnings("error")
def test_conv1d_is_known(arch_named):
    """GPT-2's weight is (in, out): A gets `in` columns and B `out` rows, without a warning."""
    arch = arch_named("gpt2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = AdapterView(add_lora(arch.make(), arch.lora(), seed=0)).read()
    assert state["blocks.0.attn.c_attn.lora_A"].shape == (2, 16)
    assert state["blocks.0.attn.c_attn.lora_B"].shape == (48, 2)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"target_modules": ["nothing"]}, r"lora\.target_modules.*'nothing'.*query, key, value, dense"),
        ({"target_modules": ["query", "nothing"]}, r"but got 'nothing'\."),
        ({"target_modules": r".*\.nothing"}, r"lora\.target_modules.*nothing.*query"),
        ({"target_modules": ["attention"]}, r"single layers.*BertAttention.*query"),
        ({"target_modules": ["LayerNorm"]}, r"LayerNorm.*not supported"),
        ({"modules_to_save": ["nothing"]}, r"lora\.modules_to_save.*'nothing'.*classifier"),
        ({"bias": "all"}, r"lora\.bias.*'none'.*'all'"),
        ({"init_lora_weights": "pissa"}, r"lora\.init_lora_weights.*'pissa'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(arch_named, changes, says):
    arch = arch_named("bert")
    with pytest.raises(ConfigError, match=says):
        add_lora(arch.make(), arch.lora(**changes), seed=0)


def test_all_problems_at_once_and_nothing_touched(arch_named):
    arch = arch_named("bert")
    model = arch.make()
    before = [(name, p.requires_grad) for name, p in model.named_parameters()]
    with pytest.raises(ConfigError) as caught:
        add_lora(model, arch.lora(target_modules=["nothing"], bias="all", modules_to_save=["nothing"]), seed=0)
    assert len(caught.value.problems) == 3
    assert [(name, p.requires_grad) for name, p in model.named_parameters()] == before


def test_targets_must_be_given_for_an_unknown_model(net):
    from peft import LoraConfig

    with pytest.raises(ConfigError, match=r"lora\.target_modules.*stem\.0, layers\.0\.0, layers\.1\.0.*fc"):
        add_lora(net, LoraConfig(), seed=0)


def test_lora_twice_is_refused(arch_named):
    arch = arch_named("bert")
    model = add_lora(arch.make(), arch.lora(), seed=0)
    with pytest.raises(ConfigError, match="no adapter yet"):
        add_lora(model, arch.lora(), seed=0)


@pytest.mark.parametrize("slot", ["lora", "lora_", "a.b", "keys", ""])
def test_names_that_peft_cannot_hold_are_refused(arch_named, slot):
    model = add_lora(arch_named("bert").make(), arch_named("bert").lora(), seed=0)
    with pytest.raises(ConfigError, match="slot's name"):
        add_slot(model, slot)


def test_a_slot_twice_is_refused(arch_named):
    model = add_lora(arch_named("bert").make(), arch_named("bert").lora(), seed=0)
    add_slot(model, "local")
    with pytest.raises(ConfigError, match=r"new slot.*'local'"):
        add_slot(model, "local")


def test_in_place_in_a_users_module(own, arch_named):
    arch = arch_named("clip")
    head, inputs = own.output, arch.inputs()
    before = own(**inputs)
    add_lora_(own, arch.lora(modules_to_save=None), seed=0)
    view = AdapterView(own)
    assert torch.equal(own(**inputs), before)
    assert type(own) is Classifier
    assert [n for n in view.names if not factor_of(n)] == ["head.bias", "head.weight"]
    assert {id(p) for p in own.parameters() if p.requires_grad} == {id(p) for p in view.parameters().values()}
    view.add_slot("local")
    view.use("local")
    assert torch.equal(own(**inputs), before)
    view.write({"head.bias": torch.ones(2)}, "local")
    assert not torch.equal(own(**inputs), before)
    view.use(None)
    assert torch.equal(own(**inputs), before)
    assert own.output.original_module is head


def test_in_place_equals_wrapped(arch):
    """The same seed gives the same values, whichever way the model is held."""
    outer = LightningModule()
    outer.net = arch.make()
    add_lora_(outer, arch.lora(), seed=0)
    wrapped = AdapterView(add_lora(arch.make(), arch.lora(), seed=0)).read()
    held = AdapterView(outer).read()
    assert list(held) == list(wrapped)
    assert all(torch.equal(held[name], wrapped[name]) for name in wrapped)


def test_in_place_without_a_head_freezes_all_but_lora(arch_named):
    arch = arch_named("vit")
    outer = LightningModule()
    outer.net = arch.make()
    add_lora_(outer, arch.lora(modules_to_save=None), seed=0)
    assert all(factor_of(name) for name in AdapterView(outer).names)


def test_a_head_whose_name_ends_others_is_refused(own, arch_named):
    own.backbone.my_output = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"`output`.*`backbone\.my_output`"):
        add_lora_(own, arch_named("clip").lora(modules_to_save=None), seed=0)


def test_a_head_that_is_no_submodule_is_refused(own, arch_named):
    own.head_module = lambda: nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="one of its submodules"):
        add_lora_(own, arch_named("clip").lora(modules_to_save=None), seed=0)


def test_lora_on_a_plain_network(net):
    from peft import LoraConfig

    add_lora_(net, LoraConfig(r=2, target_modules=["stem.0", *(f"layers.{i}.0" for i in range(3))]), seed=0)
    view = AdapterView(net)
    assert view.names == (
        *(f"blocks.{i}.0.lora_{factor}" for i in range(3) for factor in "AB"),
        "head.bias",
        "head.weight",
        "other.stem.0.lora_A",
        "other.stem.0.lora_B",
    )
    assert len(view.blocks) == 3
