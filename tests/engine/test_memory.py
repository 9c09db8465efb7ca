"""What training takes in memory: against counts by hand, and what follows from it for clients with a budget."""

import copy
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from flwr_datasets.partitioner import IidPartitioner
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_fed.adapters.state import AdapterView
from lit_fed.algorithms import FedRA
from lit_fed.core.errors import ConfigError
from lit_fed.data.federated import FederatedDataModule
from lit_fed.engine.local_loop import LocalLoop, LoopSettings
from lit_fed.engine.memory import LiveBytes, training_bytes
from tests.engine.tiny import fit, pictures, tiny_vit

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def test_what_lives_is_counted_until_nothing_refers_to_it():
    weight, data = torch.ones(8, 8), torch.ones(100, 8)  # 256 bytes that count, 3200 that do not
    with LiveBytes(CPU, [weight, weight.t()]) as memory:
        assert memory.held_bytes == memory.peak_bytes == 256
        batch = data[:4]  # a view of what does not count
        hidden = batch @ weight  # 128 bytes
        assert memory.peak_bytes == 256 + 128
        hidden.add_(1).view(8, 4)[0].mul_(2)  # nothing new
        assert memory.peak_bytes == 256 + 128
        hidden = hidden.double()  # 256 more while both are there
        assert memory.peak_bytes == 256 + 128 + 256
        del hidden
        other = torch.ones(16)  # 64, in the place of 384
        assert memory.peak_bytes == 256 + 128 + 256
        third = torch.ones(100)
        assert memory.peak_bytes == 256 + 64 + 400
    del other, third
    torch.ones(10_000)
    assert memory.peak_bytes == 256 + 64 + 400


def test_what_is_made_from_python_numbers_counts_and_what_is_elsewhere_does_not():
    with LiveBytes(CPU) as memory:
        numbers = torch.tensor([1.0, 2.0])
        assert memory.peak_bytes == 8
        elsewhere = torch.ones(100, device="meta") + 1
        assert memory.peak_bytes == 8
        back = torch.empty_like(elsewhere, device="cpu")
        assert memory.peak_bytes == 8 + 400
    assert numbers.device == back.device


def test_a_cycle_counts_to_the_end_whenever_it_would_be_collected():
    with LiveBytes(CPU) as memory:
        for _ in range(5):
            cycle: dict[str, Any] = {"tensor": torch.ones(25)}
            cycle["self"] = cycle
            del cycle
            [[] for _ in range(100_000)]  # enough for a collection
    assert memory.peak_bytes == 5 * 100


class Stack(pl.LightningModule):
    """Square linear layers, all of them trained by SGD with momentum; the loss is the sum of squares."""

    def __init__(self, width: int, num_blocks: int, manual: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(num_blocks))
        self.automatic_optimization = not manual

    def training_step(self, batch: Any) -> Tensor | None:
        (x,) = batch
        if not self.automatic_optimization:
            self.optimizers().zero_grad()
        for block in self.blocks:
            x = block(x)
        loss = (x * x).sum()
        if self.automatic_optimization:
            return loss
        self.manual_backward(loss)
        self.optimizers().step()
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)


class Rows(pl.LightningDataModule):
    """Rows of noise."""

    def __init__(self, width: int, batch_size: int) -> None:
        super().__init__()
        self.table = TensorDataset(torch.randn(4 * batch_size, width, generator=torch.Generator().manual_seed(0)))
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.table, self.batch_size, shuffle=True)


def rows(width: int, batch_size: int) -> FederatedDataModule:
    partitioner = IidPartitioner(num_partitions=2)
    return FederatedDataModule(Rows(width, batch_size), partitioner, val_fraction=0.0, test_fraction=0.0)


def measured(module: pl.LightningModule, data: FederatedDataModule, **settings: Any) -> tuple[int, int]:
    loop = LocalLoop(Fabric(accelerator="cpu"), module, LoopSettings(**settings))
    return training_bytes(loop, AdapterView(module), data, data.clients[0], seed=0)


def peak(module: pl.LightningModule, data: FederatedDataModule, blocks: range) -> int:
    """The peak of two steps with some blocks, the other way round: a copy of the module is really made of them."""
    module = copy.deepcopy(module)
    AdapterView(module).blocks.select(blocks)
    loop = LocalLoop(Fabric(accelerator="cpu"), module, LoopSettings())
    loader = data.train_loader(data.clients[0].id, torch.Generator().manual_seed(5))
    with LiveBytes(CPU, list(module.parameters())) as memory:
        loop.run(loader, data.clients[0], 0, steps=2, epochs=None)
    return memory.peak_bytes


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
@pytest.mark.parametrize(
    ("width", "batch", "each", "fixed"),
    [
        # Weights D² are more than activations B D, so the worst moment is the end of the backward pass. A block then
        # has weight, momentum and gradient: 3 D² floats. Besides: the batch and the gradient of the first activation.
        (16, 2, 3 * 256, 2 * 32),
        # Activations are more, so it is its beginning. A block has weight, momentum and activation: 2 D² + B D.
        # Besides: the batch, and the gradients of the two factors of x * x.
        (4, 64, 2 * 16 + 256, 3 * 256),
    ],
    ids=["weights", "activations"],
)
def test_a_stack_of_linear_layers(manual, width, batch, each, fixed):
    found = measured(Stack(width, 6, manual), rows(width, batch))
    assert found[1] == 4 * each
    order = 8 * 2 * batch  # that of the client's examples; it has two batches of them
    named = width * batch if manual else 0  # the last activation, which the step still has a name for
    assert 0 <= found[0] - 4 * (fixed + named) - order <= 40  # losses and their sums: a few scalars


def test_accumulated_gradients_are_there_while_the_next_batch_runs():
    _, each = measured(Stack(4, 6), rows(4, 64), accumulate_grad_batches=2)
    assert each == 4 * (3 * 16 + 256)  # weight, momentum, gradient of the batch before, activation


def test_no_number_of_blocks_takes_more_than_the_line_says():
    # D² = 256, B D = 208. The moments from above: 2 n D² + (n + 3) B D, and 3 n D² + 2 B D. Between them, at the second
    # block: all gradients but one, the inputs of two blocks, and the gradients around one: (3 n - 1) D² + 4 B D.
    module, data = Stack(16, 6), rows(16, 13)
    fixed, each = measured(module, data)
    for n in range(1, 7):
        moments = [2 * n * 256 + (n + 3) * 208, 3 * n * 256 + 2 * 208, (3 * n - 1) * 256 + 4 * 208]
        taken = peak(module, data, range(n))
        assert 0 <= taken - 4 * max(moments) - 8 * 26 <= 40
        assert taken <= fixed + n * each
    assert fixed + 6 * each < taken + 6  # no more than rounding up costs


def test_the_line_is_raised_if_the_first_blocks_take_more_than_the_others():
    class Uneven(Stack):
        def __init__(self) -> None:
            super().__init__(4, 6)
            for block in self.blocks[:3]:
                block.register_forward_hook(lambda module, args, output: output.sigmoid())  # kept for backward

    module, data = Uneven(), rows(4, 64)
    fixed, each = measured(module, data)
    peaks = [peak(module, data, range(n)) for n in range(1, 7)]
    assert peaks[2] - peaks[0] > 2 * each  # half of them take more than the slope from one to all says
    assert all(taken <= fixed + n * each for n, taken in enumerate(peaks, start=1))


@pytest.mark.parametrize("kind", ["LoRA", "dropout"])
def test_a_vision_transformer_grows_evenly_with_its_blocks(kind):
    module, data = tiny_vit(dropout=0.5 if kind == "dropout" else 0.0, optimizer=torch.optim.AdamW), pictures()
    module.configure_model()
    fixed, each = measured(module, data)
    assert [peak(module, data, range(n)) for n in (1, 2, 3)] == [fixed + n * each for n in (1, 2, 3)]
    assert peak(module, data, range(1, 3)) == fixed + 2 * each  # whichever blocks they are
    assert each > AdapterView(module).blocks.block_bytes()[0]
    assert measured(module, data) == (fixed, each)


def test_the_module_is_as_it_was(global_rng_untouched):
    module, data = tiny_vit(dropout=0.5), pictures()
    with torch.random.fork_rng():
        module.configure_model()
    module.norm = nn.BatchNorm1d(3)
    module.model.eval()
    before, view = copy.deepcopy(module.state_dict()), AdapterView(module)
    modes = [m.training for m in module.modules()]
    flags = [p.requires_grad for p in module.parameters()]
    plain = module.training_step
    module.training_step = lambda batch: module.norm(torch.randn(4, 3)).sum() * 0 + plain(batch)
    measured(module, data)
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert [m.training for m in module.modules()] == modes
    assert [p.requires_grad for p in module.parameters()] == flags
    assert all(p.grad is None for p in module.parameters())
    assert view.blocks.selected == (0, 1, 2)
    assert module._trainer is None


def test_the_module_is_as_it_was_after_an_error():
    module = Stack(4, 3)
    before = copy.deepcopy(module.state_dict())

    def fails(batch: Any) -> Tensor:
        if len(module.blocks) == 2 and calls:
            raise RuntimeError("boom")
        calls.append(1)
        return Stack.training_step(module, batch)

    calls: list[int] = []
    module.training_step = fails
    with pytest.raises(RuntimeError, match="boom"):
        measured(module, rows(4, 2))
    assert len(module.blocks) == 3
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_budgets_are_the_numbers_of_blocks_that_fit(tmp_path):
    module = tiny_vit(dropout=0.5)
    with torch.random.fork_rng():
        module.configure_model()
    fixed, each = measured(module, pictures())
    budgets = [f"{fixed + each} B", f"{fixed + 3 * each - 1} B", "1 GB"]
    by_budget = fit(FedRA(budgets), tiny_vit(dropout=0.5), pictures(), tmp_path / "a")
    by_number = fit(FedRA([1, 2, 3]), tiny_vit(dropout=0.5), pictures(), tmp_path / "b")
    assert by_budget.server.state["capacities"] == [["00", 1], ["01", 2], ["02", 3]]
    assert by_budget.summary["state_digest"] == by_number.summary["state_digest"]
    assert by_budget.metrics == by_number.metrics


def test_a_budget_without_room_for_a_block_and_one_that_is_not_measured(tmp_path):
    with pytest.raises(ConfigError, match=r"holds a block, but got '1 kB'.*for each"):
        fit(FedRA("1 kB"), tiny_vit(), pictures(), tmp_path)
    with pytest.raises(ConfigError, match="a dry run makes none"):
        fit(FedRA("1 GB"), tiny_vit(), pictures(), tmp_path, dry_run=True)
    with pytest.raises(ConfigError, match=r"federation\.cohort") as error:  # and not that nothing was measured
        fit(FedRA("1 GB"), tiny_vit(), pictures(), tmp_path, cohort=7)
    assert len(error.value.problems) == 1
    assert not list(tmp_path.iterdir())
