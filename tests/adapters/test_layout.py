"""Canonical names say block, factor and head, and nothing of how a tensor is held."""

from lightning import LightningModule

from lit_fed.adapters import AdapterView, add_lora, add_lora_, add_slot
from lit_fed.core.names import block_of, factor_of, is_head


def tuned(arch, slots=()):
    model = add_lora(arch.make(), arch.lora(), seed=0).eval()
    for slot in slots:
        add_slot(model, slot)
    return model


def test_names_say_block_factor_and_head(arch):
    names = AdapterView(tuned(arch)).names
    factors = [name for name in names if factor_of(name)]
    assert len(factors) == 2 * arch.num_blocks * arch.num_targets
    assert {block_of(name) for name in factors} == set(range(arch.num_blocks))
    heads = [name for name in names if not factor_of(name)]
    assert all(is_head(name) for name in heads)
    assert bool(heads) == (arch.task != "CAUSAL_LM")
    assert list(names) == sorted(names)


def test_names_do_not_depend_on_wrapper_slot_or_rank(arch):
    from peft import get_peft_model, inject_adapter_in_model

    names = AdapterView(tuned(arch)).names

    for attribute in ("model", "net"):
        outer = LightningModule()
        setattr(outer, attribute, tuned(arch))
        assert AdapterView(outer).names == names

    outer = LightningModule()
    outer.net = arch.make()
    add_lora_(outer, arch.lora(r=3), seed=0)
    assert AdapterView(outer).names == names

    bare = arch.make()
    heads = AdapterView(tuned(arch)).module.peft_config["global"].modules_to_save
    inject_adapter_in_model(arch.lora(modules_to_save=heads), bare, adapter_name="global")
    assert AdapterView(bare).names == names

    theirs = AdapterView(get_peft_model(arch.make(), arch.lora()))  # PEFT's own name: "default"
    assert theirs.names == names
    assert theirs.slots == ("global",)

    two = AdapterView(tuned(arch, ["local"]))
    assert two.slots == ("global", "local")
    assert tuple(two.read("local")) == two.names == names


def test_names_outside_blocks(arch_named):
    arch = arch_named("vit")
    settings = arch.lora(target_modules=["q_proj", "projection"])
    outer = LightningModule()
    outer.anything = add_lora(arch.make(), settings, seed=0)
    other = [name for name in AdapterView(outer).names if name.startswith("other.")]
    expected = "other.vit.embeddings.patch_embeddings.projection"
    assert other == [f"{expected}.lora_A", f"{expected}.lora_B"]


def test_embedding_factors_are_factors(arch_named):
    arch = arch_named("bert")
    view = AdapterView(add_lora(arch.make(), arch.lora(target_modules=["word_embeddings"]), seed=0))
    assert [n for n in view.names if not is_head(n)] == [
        f"other.bert.embeddings.word_embeddings.{factor}" for factor in ("lora_A", "lora_B")
    ]
    assert view.read()["other.bert.embeddings.word_embeddings.lora_A"].shape == (2, 31)


def test_saved_embeddings_are_no_head(arch_named):
    arch = arch_named("llama")
    view = AdapterView(add_lora(arch.make(), arch.lora(modules_to_save=["embed_tokens", "lm_head"]), seed=0))
    assert [n for n in view.names if not factor_of(n)] == ["head.weight", "other.model.embed_tokens.weight"]


def test_saved_module_in_a_block_belongs_to_the_block(arch_named):
    arch = arch_named("vit")
    view = AdapterView(add_lora(arch.make(), arch.lora(modules_to_save=["layernorm_before"]), seed=0))
    assert "blocks.2.layernorm_before.weight" in view.names
    assert not any(is_head(name) for name in view.names)


def test_magnitudes_of_dora_are_named_once(arch_named):
    arch = arch_named("vit")
    view = AdapterView(add_lora(arch.make(), arch.lora(target_modules=["q_proj"], use_dora=True), seed=0))
    first = [name for name in view.names if block_of(name) == 0]
    layer = "blocks.0.attention.q_proj"
    assert first == [f"{layer}.lora_A", f"{layer}.lora_B", f"{layer}.lora_magnitude_vector"]
    assert view.read()[first[2]].shape == (16,)
