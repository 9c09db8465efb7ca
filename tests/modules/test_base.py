"""What all modules have in common, on tiny models."""

import pickle
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from peft import LoraConfig
from torch.utils.data import DataLoader

from lit_fed.core.errors import ConfigError
from lit_fed.core.seeding import isolated_rng
from lit_fed.modules import CausalLM, ClientModule, ImageClassifier, TextClassifier

IMAGES = [{"pixel_values": torch.randn(1, 16, 16), "labels": torch.tensor(i % 3)} for i in range(7)]


def built(module: ClientModule, seed: int = 0) -> Any:
    with isolated_rng(seed, "model"):
        module.configure_model()
    return module


def alone(**options: Any) -> lightning.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return lightning.Trainer(logger=False, enable_checkpointing=False, **quiet, **options)


def frozen(module: ClientModule) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if not p.requires_grad}


def test_the_constructor_builds_nothing(config: Any) -> None:
    module = ImageClassifier(3, config=config("vit"))
    assert list(module.parameters()) == []
    with pytest.raises(RuntimeError, match="configure_model"):
        _ = module.backbone


def test_the_model_is_built_once_and_from_the_seed_in_scope(config: Any, global_rng_untouched: None) -> None:
    first, second, third = (built(ImageClassifier(3, config=config("vit")), seed) for seed in (0, 0, 1))
    model, state = first.model, {k: v.clone() for k, v in first.state_dict().items()}
    first.configure_model()
    assert first.model is model
    assert all(torch.equal(v, state[k]) for k, v in first.state_dict().items())
    assert all(torch.equal(v, state[k]) for k, v in second.state_dict().items())
    head = "model.base_model.model.classifier.modules_to_save.global.weight"
    assert not torch.equal(third.state_dict()[head], state[head])


def test_the_meta_device_holds_shapes_only(config: Any) -> None:
    real = built(ImageClassifier(3))
    with torch.device("meta"):
        shapes = ImageClassifier(3)
        shapes.configure_model()
    assert {p.device.type for p in shapes.parameters()} == {"meta"}
    assert {n: p.shape for n, p in shapes.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}


def test_a_configuration_stands_in_for_a_model_that_is_not_here(config: Any, no_network: list[Any]) -> None:
    for kind, model_type in ((ImageClassifier, "vit"), (TextClassifier, "bert")):
        with torch.device("meta"):
            module = kind(3, model="somebody/not-downloaded", config=config(model_type))
            module.configure_model()
        assert sum(p.numel() for p in module.parameters()) > 0
    assert no_network == []


def test_only_lora_and_head_are_trained(config: Any) -> None:
    module = built(ImageClassifier(3, config=config("vit")))
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert {n for n in trained if ".lora_" not in n} == {
        f"model.base_model.model.classifier.modules_to_save.global.{n}" for n in ("weight", "bias")
    }
    assert len({n for n in trained if ".lora_" in n}) == 2 * 4 * 2  # blocks, linear layers of the attention, A and B
    handed = {id(p) for group in module.configure_optimizers().param_groups for p in group["params"]}
    assert handed == {id(p) for p in module.parameters() if p.requires_grad}


def test_without_lora_the_head_is_trained(config: Any) -> None:
    module = built(ImageClassifier(3, config=config("vit"), lora=None))
    assert {n for n, p in module.named_parameters() if p.requires_grad} == {
        "model.classifier.weight", "model.classifier.bias"
    }  # fmt: skip
    assert module.head_module() is module.backbone.classifier


def test_lora_settings_are_not_written_to(config: Any) -> None:
    lora = LoraConfig(r=2)
    before = lora.to_dict()
    built(ImageClassifier(3, config=config("vit"), lora=lora))
    built(ImageClassifier(3, config=config("vit")))
    assert lora.to_dict() == before
    assert ClientModule.__init__.__kwdefaults__["lora"].modules_to_save is None


def test_new_lora_changes_nothing(config: Any) -> None:
    batch = {"pixel_values": torch.randn(2, 1, 16, 16)}
    module = built(ImageClassifier(3, config=config("vit")))
    expected = module.logits(batch)
    with module.model.disable_adapter():
        assert torch.equal(module.logits(batch), expected)


def test_dropout_is_on_in_training(config: Any) -> None:
    module = built(ImageClassifier(3, config=config("vit", hidden_dropout_prob=0.5)))
    batch = {"pixel_values": torch.randn(2, 1, 16, 16)}
    assert not torch.equal(module.logits(batch), module.logits(batch))
    module.eval()
    assert torch.equal(module.logits(batch), module.logits(batch))


def test_attention_is_fused(config: Any) -> None:
    assert built(ImageClassifier(3, config=config("vit"))).backbone.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("lora", [LoraConfig(r=2), None])
def test_trains_alone_and_leaves_the_base_as_it_was(config: Any, lora: LoraConfig | None) -> None:
    module = ImageClassifier(3, config=config("vit"), lora=lora)
    built(module)
    before = frozen(module)
    trained = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad and ".lora_A" not in n}
    alone(max_steps=2).fit(module, DataLoader(IMAGES, 2), DataLoader(IMAGES, 3))
    after = dict(module.named_parameters())
    assert all(torch.equal(after[n], value) for n, value in before.items())
    assert not any(torch.equal(after[n], value) for n, value in trained.items())


def test_the_trainer_builds_the_model_itself(config: Any) -> None:
    module = ImageClassifier(3, config=config("vit"))
    alone(max_steps=1).fit(module, DataLoader(IMAGES, 2))
    assert module.model is not None


def test_metrics_are_means_over_examples(config: Any) -> None:
    module = built(ImageClassifier(3, config=config("vit")))
    [uneven] = alone().validate(module, DataLoader(IMAGES, 3), verbose=False)
    [whole] = alone().test(module, DataLoader(IMAGES, 7), verbose=False)
    module.eval()
    logits = module(pixel_values=torch.stack([row["pixel_values"] for row in IMAGES]))
    labels = torch.stack([row["labels"] for row in IMAGES])
    assert whole["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-6)
    assert whole["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item(), abs=1e-6)
    assert uneven == pytest.approx(whole, abs=1e-6)


def test_scheduler_and_optimizer_are_the_ones_asked_for(config: Any) -> None:
    module = ImageClassifier(
        3,
        config=config("vit"),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.5),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1),
    )
    trainer = alone(max_steps=2)
    trainer.fit(module, DataLoader(IMAGES, 2))
    assert isinstance(trainer.optimizers[0], torch.optim.SGD)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.005)  # stepped after each of two steps


@pytest.mark.parametrize("settings", [{}, {"lora": LoraConfig(r=2, target_modules=["q_proj"])}, {"lora": None}])
def test_goes_to_another_process_before_it_is_built(config: Any, settings: dict[str, Any]) -> None:
    here = ImageClassifier(3, config=config("vit"), **settings)
    there = pickle.loads(pickle.dumps(here))
    expected, got = built(here).state_dict(), built(there).state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert type(there.configure_optimizers()) is torch.optim.AdamW


def test_comes_back_from_a_checkpoint(config: Any, tmp_path: Path) -> None:
    module = ImageClassifier(3, config=config("vit"), lora=LoraConfig(r=2, target_modules=["q_proj"]))
    trainer = alone(max_steps=1)
    trainer.fit(module, DataLoader(IMAGES, 2))
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "module.ckpt", weights_only=True)
    assert loaded.lora == module.lora
    assert loaded.num_labels == 3
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TextClassifier(2), "model.model"),
        (lambda: CausalLM(), "model.model"),
        (lambda: ImageClassifier(3, config={"hidden_size": 4}), "model_type"),
        (lambda: ImageClassifier(1), "model.num_labels"),
        (lambda: ImageClassifier(3, model="./nothing/here"), "./nothing/here"),
        (lambda: TextClassifier(2, model="a/b", dropout=1.0), "model.dropout"),
        (lambda: TextClassifier(2, model="a/b", max_length=0), "model.max_length"),
        (lambda: CausalLM(model="a/b", lora=None), "model.lora"),
    ],
)
def test_what_cannot_be_right_is_refused_before_anything_is_loaded(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        TextClassifier(1, max_length=0)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "no-such"},
        {"model_type": "vit", "hidden_size": 7},
        {"model_type": "vit", "hidden_size": "wide"},
        {"model_type": "t5"},
    ],
)
def test_a_model_that_cannot_be_built_is_a_configuration_error(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"Expected `model\.config`"):
        ImageClassifier(3, config=settings).configure_model()


def test_single_settings_of_a_model_change(tmp_path: Path, config: Any) -> None:
    built(ImageClassifier(3, config=config("vit"), lora=None)).model.save_pretrained(tmp_path)
    changed = built(ImageClassifier(3, model=str(tmp_path), config={"hidden_dropout_prob": 0.25}))
    assert 0.25 in {m.p for m in changed.model.modules() if isinstance(m, torch.nn.Dropout)}
    with pytest.raises(ConfigError, match=r"`model\.config` to change settings that vit has, but got \['hiden'\]"):
        built(ImageClassifier(3, model=str(tmp_path), config={"hiden": 0.25}))
    with pytest.raises(ConfigError, match=r"Expected `model\.config`"):
        built(ImageClassifier(3, model=str(tmp_path), config={"hidden_dropout_prob": "much"}))
