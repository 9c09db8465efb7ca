from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, ViTForImageClassification, ViTModel

from lit_fed.assets import embedded_model_path, pretrain
from lit_fed.data.digits import Digits
from lit_fed.data.table import TensorTable


@pytest.fixture(scope="module")
def backbone() -> ViTModel:
    return AutoModel.from_pretrained(embedded_model_path(), dtype=torch.float32, add_pooling_layer=False).eval()


@pytest.fixture(scope="module")
def plain() -> Digits:
    data = Digits(domains=("plain",))
    data.setup()
    return data


def test_the_folder_is_small_and_has_a_card() -> None:
    folder = embedded_model_path()
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000_000


def test_the_configuration() -> None:
    config = AutoConfig.from_pretrained(embedded_model_path())
    assert config.model_type == "vit"
    assert config.num_hidden_layers == 12
    assert (config.num_channels, config.image_size, config.patch_size) == (1, 32, 8)


def test_the_weights_are_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _, info = ViTModel.from_pretrained(embedded_model_path(), add_pooling_layer=False, output_loading_info=True)
    assert not any(info.values()), info
    with torch.random.fork_rng():
        _, info = ViTForImageClassification.from_pretrained(
            embedded_model_path(), num_labels=10, output_loading_info=True
        )
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert not info["unexpected_keys"]


def test_the_forward_pass_is_finite_and_the_same_twice(backbone: ViTModel) -> None:
    pixels = 2 * torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0)) - 1
    with torch.no_grad():
        first, second = (backbone(pixel_values=pixels).last_hidden_state for _ in range(2))
    assert first.shape == (4, 17, 96)
    assert first.dtype == torch.float32
    assert first.isfinite().all()
    assert torch.equal(first, second)


def test_features_of_plain_digits_tell_them_apart(backbone: ViTModel, plain: Digits) -> None:
    def features(table: TensorTable) -> torch.Tensor:
        with torch.no_grad():
            return backbone(pixel_values=table.column("pixel_values")).last_hidden_state[:, 0]

    train, labels = features(plain.train), plain.train.column("labels")
    centres = torch.stack([train[labels == label].mean(dim=0) for label in range(10)])
    nearest = torch.cdist(features(plain.test), centres).argmin(dim=1)
    assert (nearest == plain.test.column("labels")).float().mean() > 0.8


@pytest.fixture
def archives(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    packed = np.packbits(rng.integers(0, 2, (40, 105 * 105), dtype=np.uint8), axis=1)
    drawer = np.tile(np.arange(1, 21), 2)
    np.savez(tmp_path / "omniglot.npz", images_packed=packed, character=np.repeat([5, 9], 20), drawer=drawer)
    digits = rng.integers(0, 256, (30, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "mnist.npz", images=digits, labels=np.arange(30, dtype=np.uint8) % 10)
    return tmp_path / "omniglot.npz", tmp_path / "mnist.npz"


def test_the_sets_of_pretraining_are_held_out_by_drawer_and_joined_by_class(archives: tuple[Path, Path]) -> None:
    characters, digits = pretrain.read_characters(archives[0]), pretrain.read_digits(archives[1], held_out=10)
    assert characters.pixels.shape == (40, 1, 32, 32)
    assert characters.held_out.sum() == 6
    both = pretrain.join(characters, digits)
    assert both.labels.tolist() == [0] * 20 + [1] * 20 + [2 + digit % 10 for digit in range(30)]
    assert both.pixels.min() >= 0
    assert both.pixels.max() <= 1
    assert len(both.part(held_out=True)[1]) == 16


def test_pretraining_twice_from_a_seed_gives_the_same_weights(
    archives: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [
        "pretrain",
        "--omniglot",
        str(archives[0]),
        "--mnist",
        str(archives[1]),
        "--epochs",
        "2",
        "--batch-size",
        "16",
    ]
    before = torch.get_rng_state()
    for folder in ("one", "two"):
        monkeypatch.setattr("sys.argv", [*command, "--held-out-digits", "10", "--to", str(tmp_path / folder)])
        pretrain.main()
    assert torch.equal(torch.get_rng_state(), before)
    one, two = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in ("one", "two"))
    assert one == two
