"""An exit is the model cut off behind it, with a head of its own; all exits come from one pass through the blocks."""

import copy

import pytest
import torch
from lightning import LightningModule
from torch import nn

from lit_fed.adapters import AdapterView, add_lora, add_lora_, attach_exits, load_adapter, save_adapter
from lit_fed.adapters.layout import exit_heads
from lit_fed.core.errors import ConfigError, StateMismatchError
from lit_fed.core.names import block_of, exit_of, is_head

LAYERS = {
    "vit": "vit.layers",
    "clip classifier": "vision_model.encoder.layers",
    "bert": "bert.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
    "roberta": "roberta.encoder.layer",
    "gpt2 classifier": "transformer.h",
    "llama classifier": "model.layers",
    "qwen2 classifier": "model.layers",
}


class Module(LightningModule):
    """Around a model, with LoRA."""

    def __init__(self, arch, **lora):
        super().__init__()
        self.net = add_lora(arch.make(), arch.lora(**lora), seed=0)
        self.inputs = arch.inputs()

    def logits(self):
        return self.net(**self.inputs).logits


def noisy(module, depths):
    """Exits whose heads differ from one another and from the task head, and LoRA that does something."""
    attach_exits(module, depths)
    view = AdapterView(module)
    random = torch.Generator().manual_seed(4)
    view.write({n: t + 0.3 * torch.randn(t.shape, generator=random) for n, t in view.read().items()})
    return view


def without_dropout(module):
    module.train()
    for inner in module.modules():
        if isinstance(inner, nn.Dropout):
            inner.p = 0.0
    return module


def cut(module, path, depth):
    """The model cut off by hand after `depth` blocks, the values of that exit's head in its own head."""
    model = copy.deepcopy(module.net)
    base = model.get_base_model()
    parent, _, name = path.rpartition(".")
    layers = base.get_submodule(path)
    config = base.config if not hasattr(base.config, "vision_config") else base.config.vision_config
    config.num_hidden_layers = depth
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:depth]
    setattr(base.get_submodule(parent), name, nn.ModuleList(layers[:depth]))
    own = exit_heads(module)
    if str(depth) in own:
        heads = [child for name, child in base.named_children() if name in ("pre_classifier", "classifier", "score")]
        for head, part in zip(heads, own[str(depth)].children(), strict=True):
            head.modules_to_save["global"].load_state_dict(part.state_dict())
    return model


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_exits_are_the_models_cut_off_behind_them(classifier, mode):
    """Logits, and the gradients of their sum, at every exit; in training without dropout, whose draws would differ."""
    module, full = Module(classifier), classifier.num_blocks
    depths = (1, 2, full)
    view = noisy(module, depths[:-1])
    without_dropout(module).train(mode == "train")
    found = view.exits.logits(module.logits, depths)
    sum((depth * logits).square().sum() for depth, logits in zip(depths, found, strict=True)).backward()
    expected: dict[str, torch.Tensor] = {}
    for depth, logits in zip(depths, found, strict=True):
        alone = cut(module, LAYERS[classifier.name], depth)
        reference = alone(**module.inputs).logits
        assert torch.equal(logits, reference)
        alone.zero_grad()
        (depth * reference).square().sum().backward()
        for name, parameter in alone.named_parameters():
            if parameter.grad is not None:
                key = f"{depth}: {name}" if "modules_to_save" in name else name
                expected[key] = expected.get(key, 0) + parameter.grad
    gradients = {name: p.grad for name, p in module.net.named_parameters() if p.requires_grad}
    heads = [name for name in gradients if "modules_to_save" in name]
    gradients |= {f"{full}: {name}": gradients.pop(name) for name in heads}
    for depth, parts in exit_heads(module).items():
        own = [parameter for part in parts.children() for parameter in part.parameters()]
        gradients |= {f"{depth}: {name}": p.grad for name, p in zip(heads, own, strict=True)}
    assert gradients.keys() == expected.keys()
    assert len(gradients) == len(view.parameters())
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)  # float32 sums in another order


@pytest.mark.parametrize(
    ("depths", "selected", "ran"),
    [((3, 1), None, [0, 1, 2]), ((4,), None, [0, 1, 2, 3]), ((1, 2), (0, 2, 3), [0, 2]), ((2, 2), (1, 3), [1, 3])],
)
def test_every_block_runs_once_and_none_behind_the_deepest_exit(arch_named, depths, selected, ran):
    """Depths count the blocks that run; exits come in the order they were asked for."""
    arch = arch_named("qwen2 classifier")
    module = Module(arch)
    view = noisy(module, (1, 2, 3))
    view.blocks.select(selected)
    calls: list[int] = []
    for i, block in enumerate(view.blocks.blocks):
        block.register_forward_hook(lambda *_, i=i: calls.append(i))
    found = view.exits.logits(module.logits, depths)
    assert calls == ran
    for depth, logits in zip(depths, found, strict=True):
        running = (selected or range(4))[:depth]
        with view.blocks.selecting(running):
            assert torch.equal(logits, view.exits.logits(module.logits, [depth])[0])
    if selected is None:
        assert view.blocks.selected == (0, 1, 2, 3)
        with view.blocks.selecting(range(max(depths))):
            alone = module.logits()  # with the task head
        assert torch.equal(alone, found[depths.index(max(depths))]) == (max(depths) == 4)


def test_a_depth_without_a_head_of_its_own_is_given_the_task_head(arch_named):
    module = Module(arch_named("bert"))
    view = AdapterView(module)
    shallow, deep = view.exits.logits(module.logits, (2, 4))
    assert torch.equal(deep, module.logits())
    with view.blocks.selecting((0, 1)):
        assert torch.equal(shallow, module.logits())


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_of_checkpointed_blocks(arch_named, reentrant):
    arch = arch_named("llama classifier")
    found = []
    for checkpointed in (False, True):
        module = without_dropout(Module(arch))
        view = noisy(module, (1, 2))
        if checkpointed:
            module.net.gradient_checkpointing_enable({"use_reentrant": reentrant})
            module.net.enable_input_require_grads()
        calls: list[int] = []
        view.blocks.blocks[0].self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(0))
        sum(logits.square().sum() for logits in view.exits.logits(module.logits, (1, 2, 4))).backward()
        assert len(calls) == 1 + checkpointed
        found.append({name: p.grad for name, p in view.parameters().items()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-5, atol=1e-5)  # float32 sums in another order


def state_of(module):
    """All that an exit's forward touches."""
    return (
        {name: id(child) for name, child in module.named_modules()},
        [m.training for m in module.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()],
        str(module.net.get_base_model().config),
        [m.__dict__.get("layer_idx") for m in module.modules()],
    )


@pytest.mark.parametrize("selected", [None, (0, 1, 2)])
@pytest.mark.parametrize("where", ["block", "exit", "nowhere"])
def test_the_module_is_as_it_was_whatever_happens(arch_named, where, selected):
    arch = arch_named("qwen2 classifier")
    module = Module(arch).eval()
    view = noisy(module, (1, 2))
    view.blocks.select(selected)
    before = state_of(module) if selected is None else state_of(module)[1:]
    listed = list(module.net.get_submodule("base_model.model.model.layers"))

    def fail(*_):
        raise RuntimeError("boom")

    breaks = {"block": view.blocks.blocks[1], "exit": module.exits["1"]["0"], "nowhere": nn.Identity()}[where]
    handle = breaks.register_forward_hook(fail)
    try:
        view.exits.logits(module.logits, (1, 3))
    except RuntimeError:
        assert where != "nowhere"
    else:
        assert where == "nowhere"
    handle.remove()
    assert (state_of(module) if selected is None else state_of(module)[1:]) == before
    assert list(module.net.get_submodule("base_model.model.model.layers")) == listed
    assert view.blocks.selected == (selected or (0, 1, 2, 3))


@pytest.mark.usefixtures("global_rng_untouched")
def test_heads_start_as_copies_of_the_task_head(classifier):
    state, module = torch.get_rng_state(), Module(classifier)
    torch.set_rng_state(state)
    attach_exits(module, (3, 1))
    view = AdapterView(module)
    tensors = view.tensors()
    assert {exit_of(name) for name in tensors} == {None, 1, 3}
    heads = [name for name in tensors if is_head(name)]
    assert heads
    for depth in (1, 3):
        for name in heads:
            own = tensors[f"exits.{depth}{name.removeprefix('head')}"]
            assert torch.equal(own, tensors[name])
            assert own.data_ptr() != tensors[name].data_ptr()
            assert own.requires_grad
    assert len([name for name in tensors if exit_of(name)]) == 2 * len(heads)
    assert len([p for p in module.parameters() if p.requires_grad]) == len(tensors)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit", {"exits.2.weight", "exits.2.bias"}),
        ("roberta", {f"exits.2.{part}.{kind}" for part in ("dense", "out_proj") for kind in ("weight", "bias")}),
        (
            "distilbert",
            {f"exits.2.{part}.{k}" for part in ("classifier", "pre_classifier") for k in ("weight", "bias")},
        ),
    ],
)
def test_names(arch_named, name, expected):
    module = Module(arch_named(name))
    before = set(AdapterView(module).names)
    attach_exits(module, [2])
    names = set(AdapterView(module).names)
    assert names - before == expected
    assert before < names
    assert {block_of(name) for name in expected} == {None}


def test_what_is_trained_of_the_head_is_copied(arch_named):
    """PEFT keeps the original beside it; and another slot's copy is another head."""
    module = Module(arch_named("bert"))
    wrapper = module.net.get_base_model().classifier
    view = AdapterView(module)
    view.add_slot("local")
    with torch.no_grad():
        for value, held in ((1.0, wrapper.modules_to_save["global"]), (2.0, wrapper.modules_to_save["local"])):
            held.weight.fill_(value)
    view.use("local")
    attach_exits(module, [2])
    assert (module.exits["2"]["0"].weight == 1.0).all()


class Own(LightningModule):
    """A module of one's own, its head declared, with or without LoRA put in place."""

    def __init__(self, net, lora):
        super().__init__()
        self.body = net
        self.body.fc = nn.Identity()
        self.classifier = nn.Linear(6, 2)
        if lora:
            from peft import LoraConfig

            add_lora_(self, LoraConfig(r=2, target_modules=r"body\.layers\.\d\.0"), seed=0)

    def head_module(self):
        return self.classifier

    def logits(self):
        return self.classifier(self.body(torch.linspace(-1, 1, 20).view(5, 4)))


@pytest.fixture
def own_net(net):
    """Its body declares no head."""
    net.head_module = None
    return net


@pytest.mark.parametrize("lora", [True, False])
def test_ones_own_module(own_net, lora, tmp_path):
    module = Own(own_net, lora).eval()
    view = noisy(module, (2,))
    second, last = view.exits.logits(module.logits, (2, 3))
    assert torch.equal(last, module.logits())
    hidden = module.body.stem(torch.linspace(-1, 1, 20).view(5, 4))
    for layer in module.body.layers[:2]:  # the residual is not the block's, but the model's around it
        hidden = hidden + layer(hidden)
    assert torch.equal(second, module.exits["2"]["0"](hidden))
    assert {name for name in view.names if exit_of(name)} == {"exits.2.weight", "exits.2.bias"}


class Asking(Own):
    """Asks its blocks for what it needs to know."""

    def logits(self):
        x = self.body.stem(torch.linspace(-1, 1, 20).view(5, 4))
        for layer in self.body.layers:
            x = layer(x) * (2.0 if layer.training else layer.gain) + layer.doubled(x)
        return self.classifier(x)


@pytest.mark.parametrize("training", [True, False])
def test_the_block_answers_what_the_model_asks_of_it(own_net, training):
    module = Asking(own_net, False)
    for i, layer in enumerate(module.body.layers):
        layer.gain, layer.doubled = 3.0 + i, lambda x, i=i: i * x
    module.eval().body.layers.train(training)
    view = noisy(module, (1, 2))
    with view.blocks.selecting(range(2)):
        expected = view.exits.logits(module.logits, [2])[0]
    assert torch.equal(view.exits.logits(module.logits, (1, 2, 3))[1], expected)


class InPlace(Own):
    def logits(self):
        x = self.body.stem(torch.linspace(-1, 1, 20).view(5, 4))
        for layer in self.body.layers:
            x = layer(x)
            x += 1
        return self.classifier(x)


def test_a_model_that_changes_what_a_block_returned_is_refused(own_net):
    module = InPlace(own_net, False).eval()
    view = noisy(module, (1,))
    assert torch.equal(view.exits.logits(module.logits, [3])[0], module.logits())
    with pytest.raises(ConfigError, match=r"around Sequential .* changes it in place"), torch.no_grad():
        view.exits.logits(module.logits, (1, 3))
    with torch.inference_mode():
        assert len(view.exits.logits(lambda: Own.logits(module), (1, 3))) == 2


def test_a_folder_with_exits(arch_named, tmp_path):
    """PEFT takes it without them, and so does a module that has none."""
    from peft import PeftModel

    arch = arch_named("bert")
    module = Module(arch).eval()
    view = noisy(module, (1, 2))
    save_adapter(view, tmp_path / "a")
    loaded = PeftModel.from_pretrained(arch.make(), tmp_path / "a").eval()
    assert torch.equal(loaded(**arch.inputs()).logits, module.logits())
    again, without = Module(arch).eval(), Module(arch).eval()
    attach_exits(again, (1, 2))
    load_adapter(again, tmp_path / "a")
    pairs = [v.exits.logits(m.logits, (1, 2, 4)) for v, m in ((view, module), (AdapterView(again), again))]
    assert all(torch.equal(one, other) for one, other in zip(*pairs, strict=True))
    load_adapter(without, tmp_path / "a")
    assert torch.equal(without.logits(), module.logits())
    attach_exits(without, (1,))
    load_adapter(without, tmp_path / "a")
    assert torch.equal(without.exits["1"]["0"].weight, module.exits["1"]["0"].weight)
    attach_exits(without, (1, 3))
    with pytest.raises(StateMismatchError, match=r"exits\.3"):
        load_adapter(without, tmp_path / "a")


def test_new_exits_take_the_place_of_old_ones(arch_named):
    module = Module(arch_named("vit"))
    names = AdapterView(module).names
    attach_exits(module, (1, 2))
    attach_exits(module, (3,))
    assert {exit_of(name) for name in AdapterView(module).names} == {None, 3}
    attach_exits(module, ())
    assert AdapterView(module).names == names
    assert not hasattr(module, "exits")


def test_what_cannot_have_exits_says_why(arch_named):
    bert = Module(arch_named("bert"))
    for depths in ((0,), (1, 5)):
        with pytest.raises(ConfigError, match=r"after 1 to 4 blocks of Module, but got"):
            attach_exits(bert, depths)
    with pytest.raises(ConfigError, match=r"head that is trained in full, .* but got none.*head_module"):
        attach_exits(Module(arch_named("llama")), (1,))
    plain = Module(arch_named("bert"))
    base = plain.net.get_base_model()
    plain.head_module = base.bert.encoder.layer[0].attention.self.query
    with pytest.raises(ConfigError, match="but got LoRA in it"):
        attach_exits(plain, (1,))
    taken = Module(arch_named("bert"))
    taken.exits = 3
    attach_exits(taken, ())
    assert taken.exits == 3
    with pytest.raises(ConfigError, match="no attribute `exits` of its own"):
        attach_exits(taken, (1,))
    with pytest.raises(ConfigError, match="blocks in one ModuleList"):
        attach_exits(LightningModule(), (1,))
    for depths in ((), (0, 1), (5,)):
        with pytest.raises(ConfigError, match="exits after 1 to 4 blocks that run"):
            AdapterView(bert).exits.logits(bert.logits, depths)
