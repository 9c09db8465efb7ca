"""The work that benchmarks measure: FedAvg-LoRA on a ViT, by lit_fed and by a hand-written loop."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from flwr_datasets.partitioner import IidPartitioner
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lit_fed import FedAvg, FederatedDataModule, Federation, ImageClassifier
from lit_fed.adapters.state import AdapterView
from lit_fed.callbacks import Callback
from lit_fed.core.seeding import generator, isolated_rng
from lit_fed.data.table import TensorTable, collate_table
from lit_fed.engine.precision import Kernels, Precision

LR = 1e-3


@dataclass(frozen=True)
class Regime:
    """How much each client does in a round."""

    name: str
    clients: int
    steps: int
    batch_size: int
    rounds: int
    width: int = 192
    patch: int = 4
    """32x32 pictures: a patch of 4 makes 65 tokens."""
    embedded: bool = False
    """Whether the model is the one that comes with the package, in place of one of this width and patch."""
    blocks: int = 12
    heads: int = 3
    image: int = 32
    """Height and width of a picture."""
    channels: int = 1

    @property
    def examples(self) -> int:
        """Training examples of a client: every round sees each of them once."""
        return self.steps * self.batch_size


class RandomPictures(pl.LightningDataModule):
    """Pictures of noise; speed does not depend on what is to be seen.

    Args:
        num_examples: How many.
        batch_size: Of the loader.
        channels: Of a picture.
        image: Its height and width.
        pin_memory: Whether batches are drawn to where a GPU takes them from without anybody waiting.
    """

    def __init__(
        self, num_examples: int, batch_size: int, channels: int = 1, image: int = 32, pin_memory: bool = False
    ) -> None:
        super().__init__()
        random = generator(0, "benchmark")
        pixels = torch.rand(num_examples, channels, image, image, generator=random)
        labels = torch.randint(10, (num_examples,), generator=random)
        self.table = TensorTable({"pixel_values": pixels, "labels": labels})
        self.batch_size, self.pin_memory = batch_size, pin_memory

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """All pictures."""
        return DataLoader(
            self.table, self.batch_size, shuffle=True, collate_fn=collate_table, pin_memory=self.pin_memory
        )

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Eight of them: evaluation is not what is measured."""
        few = TensorTable({name: self.table.column(name)[:8] for name in self.table.columns})
        return DataLoader(few, 8, collate_fn=collate_table)


def make_module(regime: Regime) -> ImageClassifier:
    """A ViT with random weights, or the embedded one; LoRA r = 8 on q and v."""
    if regime.embedded:
        return embedded_module()
    config = {
        "model_type": "vit", "hidden_size": regime.width, "num_hidden_layers": regime.blocks,
        "num_attention_heads": regime.heads, "intermediate_size": 4 * regime.width, "image_size": regime.image,
        "patch_size": regime.patch, "num_channels": regime.channels,
    }  # fmt: skip
    return ImageClassifier(num_labels=10, model=None, config=config, lora=_lora(), optimizer=_adamw)


def embedded_module() -> ImageClassifier:
    """The model that comes with the package; LoRA r = 8 on q and v."""
    return ImageClassifier(num_labels=10, lora=_lora(), optimizer=_adamw)


def _lora() -> LoraConfig:
    return LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj", "v_proj"])


def _adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=LR)


def make_data(regime: Regime, pin_memory: bool = False) -> FederatedDataModule:
    """Equal shares for all clients, nothing held out."""
    number = regime.clients * regime.examples
    source = RandomPictures(number, regime.batch_size, regime.channels, regime.image, pin_memory)
    partitioner = IidPartitioner(num_partitions=regime.clients)
    return FederatedDataModule(source, partitioner, val_fraction=0.0, test_fraction=0.0)


class Over(Exception):  # noqa: N818 (nothing went wrong)
    """All is measured: a run ends where its last round would begin, before everybody is evaluated."""


def run_lit_fed(
    regime: Regime,
    run_dir: Path,
    watch: Callback,
    precision: Precision = "32-true",
    devices: int = 1,
    kernels: Kernels = "lean",
    together: int = 1,
) -> dict[str, Tensor]:
    """The final adapter; a callback looks on, `together` clients are trained at once."""
    federation = Federation(
        FedAvg(weights="uniform", local_steps=regime.steps), rounds=regime.rounds, run_dir=run_dir,
        evaluate_every=0, callbacks=[watch], progress=False, pictures=False, accelerator="cpu", precision=precision,
        devices=devices, kernels=kernels, batch_clients=together,
    )  # fmt: skip
    result = federation.fit(make_module(regime), make_data(regime))
    return dict(result.adapter)


class PlainLoop:
    """The same by hand: one resident model, clients in turn. What a careful researcher writes.

    Loss and mean are written with the roundings of lit_fed's, or AdamW would blow their last bits up over the steps.

    Args:
        regime: How much each client does.
        bf16: Whether steps run under bfloat16 autocast.
        fused: Whether AdamW steps in one kernel; `None`: as PyTorch does unless told.
    """

    def __init__(self, regime: Regime, bf16: bool = False, fused: bool | None = None) -> None:
        self.regime, self.bf16, self.fused = regime, bf16, fused
        module, data = make_module(regime), make_data(regime)
        with isolated_rng(0, "init"):
            module.configure_model()
        data.setup_clients()
        found = {id(p): name for name, p in AdapterView(module).parameters().items()}
        self.model: nn.Module = module.model
        self.model.train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.names = [found[id(p)] for p in self.trained]  # only to compare the results
        self._table = {name: data.source.table.column(name) for name in data.source.table.columns}
        self.shares = {client: torch.from_numpy(rows) for client, rows in data.allocation.rows["train"].items()}

    def values(self) -> list[Tensor]:
        """A copy of what is trained."""
        return [p.detach().clone() for p in self.trained]

    def batches(self, round: int, client: str) -> list[dict[str, Tensor]]:
        """A client's batches of a round."""
        drawn = _batches(self.shares[client], self.regime, round, client)
        return [{name: column[rows] for name, column in self._table.items()} for rows in drawn]

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The mean loss of a batch."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = self.model(pixel_values=batch["pixel_values"]).logits
            return cross_entropy(logits, batch["labels"], reduction="sum") / len(batch["labels"])

    def turn(self, round: int, client: str, start: Sequence[Tensor]) -> None:
        """Train from these values on a client's data; afterwards the model holds what the client would send."""
        with torch.no_grad():
            torch._foreach_copy_(self.trained, start)
        optimizer = torch.optim.AdamW(self.trained, lr=LR, fused=self.fused)
        for batch in self.batches(round, client):
            loss = self.loss(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def round(
        self,
        round: int,
        current: Sequence[Tensor],
        clients: Sequence[str] | None = None,
        add_up: Callable[[Tensor], Any] | None = None,
    ) -> list[Tensor]:
        """A round of all clients; their mean, in float64.

        Args:
            round: The round, from 0.
            current: What every client starts from.
            clients: Those that this process trains; `None`: all.
            add_up: Adds a tensor up over processes, in place.
        """
        sums = [torch.zeros_like(p, dtype=torch.float64) for p in self.trained]
        for client in self.shares if clients is None else clients:
            self.turn(round, client, current)
            with torch.no_grad():
                torch._foreach_add_(sums, [p.double() for p in self.trained])
        if add_up is not None:
            flat = torch.cat([total.flatten() for total in sums])
            add_up(flat)
            sums = [part.view_as(p) for part, p in zip(flat.split([p.numel() for p in sums]), sums, strict=True)]
        return [total.div_(len(self.shares)).float() for total in sums]

    def named(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """Values by canonical name."""
        return {name: value.detach() for name, value in zip(self.names, values, strict=True)}


def _batches(rows: Tensor, regime: Regime, round: int, client: str) -> tuple[Tensor, ...]:
    """The batches that a DataLoader with lit_fed's generator would draw."""
    random = generator(0, "shuffle", round, client, 0)
    torch.empty((), dtype=torch.int64).random_(generator=random)  # a loader's first draw seeds its workers
    order = torch.randperm(len(rows), generator=random)
    return rows[order].split(regime.batch_size)
