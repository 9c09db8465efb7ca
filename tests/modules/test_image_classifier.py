from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lit_fed.core.errors import ConfigError
from lit_fed.core.seeding import isolated_rng
from lit_fed.modules import ImageClassifier


def built(**settings: Any) -> Any:
    module = ImageClassifier(3, **settings)
    with isolated_rng(0):
        module.configure_model()
    return module


def test_loss_is_cross_entropy_by_hand() -> None:
    # -log softmax: log(1 + e^-1) for a right answer ahead by 1, log(1 + e^2) for a wrong one ahead by 2
    logits = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    expected = (np.log(1 + np.exp(-1)) + np.log(1 + np.exp(2))) / 2
    assert ImageClassifier(2).loss(logits, torch.tensor([0, 1])).item() == pytest.approx(expected, abs=1e-6)


def test_loss_is_in_float32_whatever_the_logits_are() -> None:
    loss = ImageClassifier(2).loss(torch.zeros(1, 2, dtype=torch.bfloat16), torch.tensor([0]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(np.log(2), abs=1e-7)


@pytest.mark.parametrize("model_type", ["vit", "deit", "clip"])
def test_features_are_what_the_head_sees(model_type: str, config: Any) -> None:
    module = built(config=config(model_type)).eval()
    batch = {"pixel_values": torch.randn(4, 1, 16, 16), "labels": torch.zeros(4), "domain": torch.zeros(4)}
    logits, features = module.logits_and_features(batch)
    assert features.shape == (4, 16)
    torch.testing.assert_close(module.head_module()(features), logits, rtol=0, atol=0)
    assert torch.equal(module.features(batch), features)
    assert not module.head_module()._forward_pre_hooks


@pytest.mark.parametrize("model_type", ["vit", "deit", "clip"])
def test_the_head_alone_is_trained_in_full(model_type: str, config: Any) -> None:
    module = built(config=config(model_type))
    full = {n for n, p in module.named_parameters() if p.requires_grad and ".lora_" not in n}
    assert {name.rpartition("model.")[2] for name in full} == {
        "classifier.modules_to_save.global.weight",
        "classifier.modules_to_save.global.bias",
    }


def test_the_embedded_model_is_the_default_and_is_loaded() -> None:
    from safetensors.torch import load_file

    from lit_fed.assets import embedded_model_path

    module = built()
    assert module.hparams["model"] == "embedded"
    stored = {
        name.removeprefix("vit."): value
        for name, value in load_file(embedded_model_path() / "model.safetensors").items()
    }
    held = module.backbone.vit.embeddings.cls_token
    assert held.dtype == torch.float32
    torch.testing.assert_close(held.data, stored["embeddings.cls_token"].float(), rtol=0, atol=0)


def test_predicts_probabilities_and_labels(config: Any) -> None:
    module = built(config=config("vit"))
    prediction = module.predict_step({"pixel_values": torch.randn(5, 1, 16, 16)})
    torch.testing.assert_close(prediction["probs"].sum(1), torch.ones(5))
    assert torch.equal(prediction["labels"], prediction["probs"].argmax(1))


def test_labels_out_of_range_are_told() -> None:
    module = ImageClassifier(3)
    assert module.check_targets(torch.tensor([0, 1, 2])) == []
    [problem] = module.check_targets(torch.tensor([0, 3, -1, 7, 3]))
    assert "from 0 to 2" in problem
    assert "-1, 3, 7" in problem
    assert "4 of 5 rows" in problem
    assert "model.num_labels" in problem
    assert "integers" in module.check_targets(torch.tensor([0.0]))[0]


def test_images_of_all_kinds_become_the_same_pixels(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    picture, file = Image.fromarray(array), tmp_path / "picture.png"
    picture.save(file)
    kinds = [
        picture,
        array,
        str(file),
        file,
        {"bytes": file.read_bytes(), "path": None},
        {"bytes": None, "path": str(file)},
    ]
    pixels = ImageClassifier(3).encode({"image": kinds})["pixel_values"]
    assert pixels.shape == (6, 1, 32, 32)
    assert all(torch.equal(pixels[0], other) for other in pixels)
    assert -1 <= pixels.min() < pixels.max() <= 1


def test_black_and_white_are_the_ends_of_the_range(config: Any) -> None:
    ends = [np.zeros((16, 16), np.uint8), np.full((16, 16, 1), 255, np.uint8)]
    pixels = ImageClassifier(3, config=config("vit", num_channels=3)).encode({"image": ends})["pixel_values"]
    assert torch.equal(pixels, torch.stack([torch.full((3, 16, 16), v) for v in (-1.0, 1.0)]))


def test_the_models_own_image_processor_is_used(config: Any, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForImageClassification, ViTImageProcessorPil

    settings = config("vit", num_channels=3)
    AutoModelForImageClassification.from_config(AutoConfig.for_model(**settings)).save_pretrained(tmp_path)
    size = {"height": 16, "width": 16}
    ViTImageProcessorPil(size=size, image_mean=[0.0] * 3, image_std=[1.0, 0.5, 0.25]).save_pretrained(tmp_path)
    white = Image.new("RGB", (16, 16), (255, 255, 255))
    pixels = ImageClassifier(3, model=str(tmp_path)).encode({"image": [white]})["pixel_values"]
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([1.0, 2.0, 4.0]))  # (1 - mean) / std


def test_encode_refuses_what_it_cannot_read() -> None:
    with pytest.raises(ConfigError, match=r"column `image`, but got \['picture'\]"):
        ImageClassifier(3).encode({"picture": []})
    with pytest.raises(ConfigError, match="float32"):
        ImageClassifier(3).encode({"image": [np.zeros((4, 4), np.float32)]})


def test_a_model_without_attention_asks_for_the_layers() -> None:
    settings = {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 8],
        "depths": [1, 1],
        "num_channels": 1,
    }
    with pytest.raises(ConfigError, match=r"Set `model\.lora\.target_modules`"):
        ImageClassifier(3, config=settings).configure_model()
    assert built(config=settings, lora=None).features({"pixel_values": torch.randn(2, 1, 16, 16)}).shape == (2, 8)
