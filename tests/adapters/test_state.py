"""An adapter is read and written by slot and canonical name, and nothing else in the module changes."""

import pytest
import torch
from torch import nn

from lit_fed.adapters import AdapterView, add_lora, add_slot
from lit_fed.core.errors import ConfigError, StateMismatchError
from lit_fed.core.names import block_of, factor_of, is_head


def tuned(arch, slots=()):
    model = add_lora(arch.make(), arch.lora(), seed=0).eval()
    for slot in slots:
        add_slot(model, slot)
    return model


def randomised(view, slot="global", seed=7):
    """Other values for a slot, so that it does something."""
    random = torch.Generator().manual_seed(seed)
    return {name: torch.randn(t.shape, generator=random) for name, t in view.read(slot).items()}


def bytes_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module, before):
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


def test_round_trip(arch):
    model = tuned(arch)
    view = AdapterView(model)
    base = arch.logits(model)
    state = randomised(view)
    view.write(state)
    back = view.read()
    assert list(back) == list(view.names)
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert all(t.dtype == torch.float32 and t.device.type == "cpu" for t in back.values())
    assert not torch.equal(arch.logits(model), base)


def test_read_shares_no_memory(arch_named):
    view = AdapterView(tuned(arch_named("bert")))
    live = {tensor.data_ptr() for tensor in view.tensors().values()}
    assert not live & {tensor.data_ptr() for tensor in view.read().values()}


def test_a_slot_starts_as_the_global_one(arch):
    model = tuned(arch)
    view = AdapterView(model)
    view.write(randomised(view))
    before, trainable = bytes_of(model), {n for n, p in model.named_parameters() if p.requires_grad}
    view.add_slot("local")
    local, shared = view.read("local"), view.read()
    assert all(torch.equal(local[name], shared[name]) for name in view.names)
    assert not changed(model, before | {n: t for n, t in model.state_dict().items() if n not in before})
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trainable
    assert view.active == "global"
    logits = arch.logits(model)
    view.use("local")
    assert torch.equal(arch.logits(model), logits)


@pytest.mark.usefixtures("global_rng_untouched")
def test_a_slot_draws_no_random_numbers(arch_named):
    tuned(arch_named("vit"), ["local"])


def test_writing_a_slot_leaves_the_rest(arch):
    model = tuned(arch, ["local"])
    view = AdapterView(model)
    before = bytes_of(model)
    view.write(randomised(view, "local"), "local")
    touched = changed(model, before)
    assert len(touched) == len(view.names)
    assert all(".local." in name for name in touched)


def test_partial_write(arch_named):
    model = tuned(arch_named("bert"))
    view = AdapterView(model)
    before = view.read()
    some = {name: value for name, value in randomised(view).items() if block_of(name) == 1}
    view.write(some)
    after = view.read()
    assert {name for name in view.names if not torch.equal(after[name], before[name])} == set(some)


@pytest.mark.parametrize(
    ("extra", "says"),
    [({"head.nothing": torch.zeros(1)}, "head.nothing"), ({"head.bias": torch.zeros(6)}, r"\(6,\) in place of \(5,\)")],
)
def test_a_misfit_writes_nothing(arch_named, extra, says):
    view = AdapterView(tuned(arch_named("bert")))
    before = view.read()
    with pytest.raises(StateMismatchError, match=says):
        view.write(randomised(view) | extra)
    assert all(torch.equal(t, before[name]) for name, t in view.read().items())


def test_b_zero_leaves_the_base_exactly(arch):
    model = arch.make()
    base = arch.logits(model)
    view = AdapterView(add_lora(model, arch.lora(), seed=0).eval())
    assert torch.equal(arch.logits(view.module), base)
    values = randomised(view)
    view.write({n: torch.zeros_like(t) if factor_of(n) == "B" else t for n, t in values.items() if factor_of(n)})
    assert torch.equal(arch.logits(view.module), base)


def test_use_chooses_what_runs_and_nothing_else(arch):
    model = arch.make()
    base = arch.logits(model)
    view = AdapterView(add_lora(model, arch.lora(), seed=0).eval())
    view.add_slot("local")
    view.write(randomised(view, "global", 1), "global")
    view.write(randomised(view, "local", 2), "local")
    view.train_only("local", is_head)
    flags = [p.requires_grad for p in view.module.parameters()]
    first = arch.logits(view.module)
    view.use("local")
    second = arch.logits(view.module)
    view.use(None)
    assert view.active is None
    assert torch.equal(arch.logits(view.module), base)
    view.use("local")
    assert torch.equal(arch.logits(view.module), second)
    view.use("global")
    assert torch.equal(arch.logits(view.module), first)
    assert not torch.equal(first, second)
    assert [p.requires_grad for p in view.module.parameters()] == flags


def test_use_is_what_peft_does(arch_named):
    """PEFT's own switch and ours give the same, and PEFT can tell which slot runs."""
    from peft import get_model_status

    arch = arch_named("vit")
    view = AdapterView(tuned(arch, ["local"]))
    view.write(randomised(view, "local"), "local")
    view.use("local")
    ours = arch.logits(view.module)
    assert get_model_status(view.module).active_adapters == ["local"]
    view.use("global")
    view.module.set_adapter("local")
    assert torch.equal(arch.logits(view.module), ours)
    assert AdapterView(view.module).active == "local"
    view.use(None)
    assert get_model_status(view.module).enabled is False
    assert AdapterView(view.module).active is None


def test_train_only_is_exact(arch):
    model = tuned(arch, ["local"])
    view = AdapterView(model)
    for slot in view.slots:
        for where in (None, lambda name: factor_of(name) == "B", is_head):
            view.train_only(slot, where)
            wanted = [name for name in view.names if where is None or where(name)]
            assert list(view.trained(slot)) == wanted
            ids = {id(view.parameters(slot)[name]) for name in wanted}
            assert {id(p) for p in model.parameters() if p.requires_grad} == ids


def test_gradients_reach_the_slot_in_use(arch_named):
    arch = arch_named("distilbert")
    view = AdapterView(tuned(arch, ["local"]))
    view.train_only("local")
    view.use("local")
    view.module(**arch.inputs()).logits.sum().backward()
    assert all(p.grad is None for p in view.parameters("global").values())
    assert all(p.grad is not None for p in view.trained("local").values())


def test_several_slots_are_trained_at_once(arch_named):
    arch = arch_named("vit")
    model = tuned(arch, ["local"])
    view = AdapterView(model)
    view.train_only("global", is_head, {"local": lambda name: factor_of(name) == "B"})
    wanted = [name for name in view.names if factor_of(name) == "B"]
    assert list(view.trained("local")) == wanted
    assert list(view.trained()) == [name for name in view.names if is_head(name)]
    ids = {id(p) for slot in view.slots for p in view.trained(slot).values()}
    assert {id(p) for p in model.parameters() if p.requires_grad} == ids
    for slot in view.slots:
        view.use(slot)
        model(**arch.inputs()).logits.sum().backward()
    assert all(p.grad is not None for slot in view.slots for p in view.trained(slot).values())
    view.train_only("local", None, {})
    assert not view.trained()


def test_selected_blocks_do_not_hide_tensors(arch_named):
    view = AdapterView(tuned(arch_named("bert")))
    state = randomised(view)
    view.blocks.select([1])
    view.write(state)
    view.add_slot("local")
    view.train_only("local")
    assert view.blocks.selected == (1,)
    assert all(torch.equal(t, state[name]) for name, t in view.read("local").items())
    view.blocks.select(None)
    ids = {id(p) for p in view.parameters("local").values()}
    assert {id(p) for p in view.module.parameters() if p.requires_grad} == ids


def test_plain_module(net):
    view = AdapterView(net)
    assert view.slots == ("global",)
    assert view.names == (
        *(f"blocks.{i}.0.{kind}" for i in range(3) for kind in ("bias", "weight")),
        "head.bias",
        "head.weight",
        "other.stem.0.bias",
        "other.stem.0.weight",
        "other.stem.1.bias",
        "other.stem.1.running_mean",
        "other.stem.1.running_var",
        "other.stem.1.weight",
    )
    assert set(view.names) - set(view.parameters()) == {"other.stem.1.running_mean", "other.stem.1.running_var"}
    state = randomised(view)
    view.write(state)
    assert torch.equal(net.stem[1].running_mean, state["other.stem.1.running_mean"])
    assert all(torch.equal(t, state[name]) for name, t in view.read().items())


def test_what_was_frozen_at_first_is_not_exchanged(net):
    net.stem.requires_grad_(False)
    view = AdapterView(net)
    net.stem.requires_grad_(True)
    assert not any(name.startswith("other") for name in view.names)
    view.train_only()
    assert not any(p.requires_grad for p in net.stem.parameters())


@pytest.mark.parametrize("slot", ["local", None])
def test_plain_module_has_no_other_slot(net, slot):
    view = AdapterView(net)
    with pytest.raises(ConfigError, match="add_lora_"):
        view.use(slot)
    with pytest.raises(ConfigError, match="add_lora"):
        view.add_slot("local")


def test_a_head_beside_peft(arch_named):
    """What PEFT does not hold is exchanged too, but has one version only."""
    arch = arch_named("clip")
    outer = nn.Module()
    outer.backbone = add_lora(arch.make(), arch.lora(modules_to_save=None), seed=0)
    outer.head = outer.head_module = nn.Linear(6, 2)
    view = AdapterView(outer)
    assert view.plain_names == ("head.bias", "head.weight")
    view.write({"head.bias": torch.tensor([1.0, 2.0])})
    assert outer.head.bias.tolist() == [1.0, 2.0]
    view.train_only(where=is_head)
    assert [p is outer.head.weight or p is outer.head.bias for p in outer.parameters() if p.requires_grad] == [True] * 2
    with pytest.raises(ConfigError, match=r"head\.bias, head\.weight outside.*modules_to_save"):
        view.add_slot("local")


def test_names_inside_and_beside_a_backbone_stay_apart(arch_named):
    """`fc.weight` of the backbone and `fc.weight` beside it would both be `other.fc.weight`."""
    model = arch_named("bert").make().requires_grad_(False)
    model.fc = nn.Linear(2, 2, bias=False)
    outer = nn.ModuleDict({"bert": model, "fc": nn.Linear(2, 2, bias=False)})
    assert AdapterView(outer).names == ("other.bert.fc.weight", "other.fc.weight")


def test_nothing_to_train_is_refused(net):
    with pytest.raises(ConfigError, match="none with `requires_grad`"):
        AdapterView(net.requires_grad_(False))


def test_merged_adapters_are_refused(arch_named):
    model = tuned(arch_named("bert"))
    model.merge_adapter()
    with pytest.raises(ConfigError, match="unmerge_adapter"):
        AdapterView(model)


def test_several_foreign_adapters_are_refused(arch_named):
    from peft import get_peft_model

    arch = arch_named("llama")
    model = get_peft_model(arch.make(), arch.lora(), adapter_name="one")
    model.add_adapter("two", arch.lora())
    with pytest.raises(ConfigError, match=r"named 'global'.*\['one', 'two'\]"):
        AdapterView(model)


def test_head_module_must_be_a_module(net):
    net.head_module = lambda: "fc"
    with pytest.raises(ConfigError, match=r"head_module.*got str"):
        AdapterView(net)


def test_state_of_a_model_in_bfloat16(arch_named):
    arch = arch_named("vit")
    model = add_lora(arch.make().bfloat16(), arch.lora(), seed=0)
    view = AdapterView(model)
    assert {p.dtype for n, p in view.parameters().items() if factor_of(n)} == {torch.float32}
    state = view.read()
    assert {t.dtype for t in state.values()} == {torch.float32}
    before = bytes_of(model)
    view.write(state)
    assert not changed(model, before)
