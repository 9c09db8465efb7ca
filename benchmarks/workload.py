"""The work that benchmarks measure: FedAvg-LoRA on a ViT of width 192, by lit_fed and by a hand-written loop."""

import time
from dataclasses import dataclass
from pathlib import Path

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

    @property
    def examples(self) -> int:
        """Training examples of a client: every round sees each of them once."""
        return self.steps * self.batch_size


class RandomPictures(pl.LightningDataModule):
    """Pictures of noise; speed does not depend on what is to be seen."""

    def __init__(self, num_examples: int, batch_size: int) -> None:
        super().__init__()
        random = generator(0, "benchmark")
        pixels = torch.rand(num_examples, 1, 32, 32, generator=random)
        labels = torch.randint(10, (num_examples,), generator=random)
        self.table = TensorTable({"pixel_values": pixels, "labels": labels})
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """All pictures."""
        return DataLoader(self.table, self.batch_size, shuffle=True, collate_fn=collate_table)

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Eight of them: evaluation is not what is measured."""
        few = TensorTable({name: self.table.column(name)[:8] for name in self.table.columns})
        return DataLoader(few, 8, collate_fn=collate_table)


def make_module(regime: Regime) -> ImageClassifier:
    """A ViT with random weights; LoRA r = 8 on q and v."""
    config = {
        "model_type": "vit", "hidden_size": regime.width, "num_hidden_layers": 12, "num_attention_heads": 3,
        "intermediate_size": 4 * regime.width, "image_size": 32, "patch_size": regime.patch, "num_channels": 1,
    }  # fmt: skip
    lora = LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    return ImageClassifier(
        num_labels=10, model=None, config=config, lora=lora, optimizer=lambda p: torch.optim.AdamW(p, lr=LR)
    )


def make_data(regime: Regime) -> FederatedDataModule:
    """Equal shares for all clients, nothing held out."""
    source = RandomPictures(regime.clients * regime.examples, regime.batch_size)
    partitioner = IidPartitioner(num_partitions=regime.clients)
    return FederatedDataModule(source, partitioner, val_fraction=0.0, test_fraction=0.0)


class Stopwatch(Callback):
    """Times whole rounds: tables and checkpoints included."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_round_start(self, federation: Federation, round: int, cohort: tuple[str, ...]) -> None:
        """A round begins where the one before ends."""
        self.marks.append(time.perf_counter())

    def on_fit_end(self, federation: Federation) -> None:
        """The last one ends with the run."""
        self.marks.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """Seconds of each round but the last, whose end includes an evaluation."""
        return [b - a for a, b in zip(self.marks, self.marks[1:], strict=False)][:-1]


def run_lit_fed(regime: Regime, run_dir: Path, precision: str = "32-true") -> tuple[list[float], dict[str, Tensor]]:
    """Seconds of each round, and the final adapter."""
    watch = Stopwatch()
    federation = Federation(
        FedAvg(weights="uniform", local_steps=regime.steps), rounds=regime.rounds + 1, run_dir=run_dir,
        evaluate_every=0, callbacks=[watch], progress=False, accelerator="cpu", precision=precision,
    )  # fmt: skip
    result = federation.fit(make_module(regime), make_data(regime))
    return watch.seconds, dict(result.adapter)


def run_plain_loop(regime: Regime) -> tuple[list[float], dict[str, Tensor]]:
    """The same by hand: one resident model, clients in turn. What a careful researcher writes.

    Loss and mean are written with the roundings of lit_fed's, or AdamW would blow their last bits up over the steps.
    """
    module, data = make_module(regime), make_data(regime)
    with isolated_rng(0, "init"):
        module.configure_model()
    data.setup_clients()
    names = {id(p): name for name, p in AdapterView(module).parameters().items()}  # only to compare the results
    model: nn.Module = module.model
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    table = {name: data.source.table.column(name) for name in data.source.table.columns}
    shares = {client: torch.from_numpy(rows) for client, rows in data.allocation.rows["train"].items()}
    current = [p.detach().clone() for p in trained]
    seconds = []
    for round in range(regime.rounds + 1):
        started = time.perf_counter()
        sums = [torch.zeros_like(p, dtype=torch.float64) for p in trained]
        for client, rows in shares.items():
            with torch.no_grad():
                torch._foreach_copy_(trained, current)
            optimizer = torch.optim.AdamW(trained, lr=LR)
            for batch in _batches(rows, regime, round, client):
                logits = model(pixel_values=table["pixel_values"][batch]).logits
                loss = cross_entropy(logits, table["labels"][batch], reduction="sum") / len(batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                torch._foreach_add_(sums, [p.double() for p in trained])
        current = [total.div_(len(shares)).float() for total in sums]
        seconds.append(time.perf_counter() - started)
    return seconds[:-1], {names[id(p)]: value.detach() for p, value in zip(trained, current, strict=True)}


def _batches(rows: Tensor, regime: Regime, round: int, client: str) -> tuple[Tensor, ...]:
    """The batches that a DataLoader with lit_fed's generator would draw."""
    random = generator(0, "shuffle", round, client, 0)
    torch.empty((), dtype=torch.int64).random_(generator=random)  # a loader's first draw seeds its workers
    order = torch.randperm(len(rows), generator=random)
    return rows[order].split(regime.batch_size)
