"""Small modules and data, written as their users would write them."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from flwr_datasets.partitioner import IidPartitioner
from peft import LoraConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_fed.algorithms import Algorithm
from lit_fed.data.federated import FederatedDataModule
from lit_fed.engine import Federation, Result
from lit_fed.modules.causal_lm import CausalLM
from lit_fed.modules.image_classifier import ImageClassifier


class Points(pl.LightningDataModule):
    """Two-dimensional points of three classes; no domains."""

    def __init__(self, num_examples: int = 48, batch_size: int = 4) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(1)
        y = torch.arange(num_examples) % 3
        x = torch.randn(num_examples, 2, generator=random) + torch.stack([y == 1, y == 2], dim=1) * 3.0
        self.train, self.test, self.batch_size = TensorDataset(x, y), TensorDataset(x[:12], y[:12]), batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.test, 5)


class Net(pl.LightningModule):
    """An ordinary LightningModule; its first layer is frozen."""

    def __init__(
        self,
        lr: float = 0.1,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="optimizer")
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.body, self.head = nn.Linear(2, 5), nn.Linear(5, 3)
        self.body.requires_grad_(False)
        self.dropout = nn.Dropout(dropout)
        self.optimizer, self.lr = optimizer, lr

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(torch.tanh(self.body(x))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.log("val_loss", nn.functional.cross_entropy(logits, y))
        self.log("val_accuracy", (logits.argmax(-1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        return self.optimizer([p for p in self.parameters() if p.requires_grad], lr=self.lr)


def points(clients: int = 3, **settings: Any) -> FederatedDataModule:
    return FederatedDataModule(
        Points(**settings), IidPartitioner(num_partitions=clients), val_fraction=0.25, test_fraction=0.25
    )


class Pictures(pl.LightningDataModule):
    """8 x 8 pictures of noise with labels 0 and 1."""

    def __init__(self, num_examples: int = 24) -> None:
        super().__init__()
        from lit_fed.data.table import TensorTable, collate_table

        random = torch.Generator().manual_seed(2)
        pixels = torch.randn(num_examples, 1, 8, 8, generator=random)
        self.table = TensorTable({"pixel_values": pixels, "labels": (pixels.mean((1, 2, 3)) > 0).long()})
        self.collate = collate_table

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.table, 4, shuffle=True, collate_fn=self.collate)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.table, 8, collate_fn=self.collate)


def pictures(clients: int = 3) -> FederatedDataModule:
    return FederatedDataModule(
        Pictures(), IidPartitioner(num_partitions=clients), val_fraction=0.25, test_fraction=0.25
    )


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5)


def tiny_vit(dropout: float = 0.0, optimizer: Any = sgd) -> ImageClassifier:
    config = {
        "model_type": "vit", "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2,
        "intermediate_size": 16, "image_size": 8, "patch_size": 4, "num_channels": 1,
    }  # fmt: skip
    lora = LoraConfig(r=2, lora_alpha=4, lora_dropout=dropout, target_modules=["q_proj", "v_proj"])
    return ImageClassifier(num_labels=2, config=config, lora=lora, optimizer=optimizer)


TINY_LLAMA = {
    "model_type": "llama", "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def tiny_llama(packing: bool = False) -> CausalLM:
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])
    return CausalLM(config=TINY_LLAMA, max_length=12, packing=packing, lora=lora, optimizer=sgd)


class Texts(pl.LightningDataModule):
    """24 texts of 2 to 12 tokens; if trimmed, a batch is as wide as its longest."""

    def __init__(self, trimmed: bool = False) -> None:
        super().__init__()
        from lit_fed.data import TrimPadding
        from lit_fed.data.table import TensorTable, collate_table

        random = torch.Generator().manual_seed(4)
        mask = (torch.arange(12) < torch.randint(2, 13, (24, 1), generator=random)).long()
        ids = torch.randint(3, 20, (24, 12), generator=random) * mask
        labels = ids.masked_fill(mask == 0, -100)
        self.table = TensorTable({"input_ids": ids, "attention_mask": mask, "labels": labels})
        self.collate: Any = TrimPadding() if trimmed else collate_table

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.table, 4, shuffle=True, collate_fn=self.collate)


def texts(clients: int = 2, trimmed: bool = False) -> FederatedDataModule:
    partitioner = IidPartitioner(num_partitions=clients)
    return FederatedDataModule(Texts(trimmed), partitioner, val_fraction=0.25, test_fraction=0.25)


def fit(
    algorithm: Algorithm, module: pl.LightningModule, data: FederatedDataModule, run_dir: Any, **settings: Any
) -> Result:
    ckpt_path = settings.pop("ckpt_path", None)
    defaults: dict[str, Any] = {"rounds": 2, "accelerator": "cpu", "progress": False, "pictures": False}
    return Federation(algorithm, run_dir=run_dir, **{**defaults, **settings}).fit(module, data, ckpt_path)
