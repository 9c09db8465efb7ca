"""A federation with its blocks on disk: what each client holds in memory, and that nothing else is different."""

from contextlib import nullcontext
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lit_fed.adapters.blocks import require_blocks
from lit_fed.adapters.offload import BlockStore
from lit_fed.adapters.state import AdapterView
from lit_fed.algorithms import DepthFL, FedAvg, FedRA, FLoRA
from lit_fed.callbacks import Callback
from lit_fed.core.errors import ClientFailure, ConfigError
from lit_fed.engine.memory import LiveBytes
from tests.engine.tiny import Net, fit, pictures, points, tiny_vit

pytestmark = pytest.mark.usefixtures("one_thread")
CAPACITIES = [1, 2, 3]


def in_memory(module: pl.LightningModule) -> list[int]:
    """The blocks whose frozen weights are in memory."""
    weights = [block.attention.q_proj.base_layer.weight for block in require_blocks(module).blocks]
    return [i for i, weight in enumerate(weights) if weight.untyped_storage().nbytes() == 4 * weight.numel()]


class Watch(pl.Callback):
    """Notes at every step which blocks are selected, and which are in memory."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[int], list[int]]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
        self.seen.append((list(require_blocks(module).selected), in_memory(module)))


class Fails(Callback):
    def on_round_start(self, federation: Any, round: int, cohort: Any) -> None:
        if round == 1:
            raise RuntimeError("boom")


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_the_result_is_the_same_to_the_bit(tmp_path, precision):
    settings = {"rounds": 3, "precision": precision}
    modules = [tiny_vit(dropout=0.5), tiny_vit(dropout=0.5)]
    plain = fit(FedRA(CAPACITIES), modules[0], pictures(), tmp_path / "a", **settings)
    other = fit(FedRA(CAPACITIES), modules[1], pictures(), tmp_path / "b", offload_blocks=True, **settings)
    assert other.summary["state_digest"] == plain.summary["state_digest"]
    assert other.metrics == plain.metrics
    weights, same = (dict(module.named_parameters()) for module in modules)
    assert all(torch.equal(value, same[name]) and value.dtype == same[name].dtype for name, value in weights.items())
    assert not (other.path / "blocks").exists()
    resumed = {"ckpt_path": "last", "offload_blocks": True, "precision": precision}
    for rounds in (2, 3):
        goes_on = fit(FedRA(CAPACITIES), tiny_vit(dropout=0.5), pictures(), tmp_path / "c", rounds=rounds, **resumed)
    assert goes_on.summary["state_digest"] == plain.summary["state_digest"]


def test_early_exits_select_blocks_in_a_step_and_lose_none(tmp_path):
    depths = [1, 2, 3]
    plain, other = (
        fit(DepthFL(depths), tiny_vit(), pictures(), tmp_path, rounds=3, offload_blocks=offloads)
        for offloads in (False, True)
    )
    assert other.summary["state_digest"] == plain.summary["state_digest"]
    assert other.metrics == plain.metrics


def test_a_client_holds_its_blocks_and_no_others(tmp_path):
    watch = Watch()
    fit(FedRA([1, 1, 2]), tiny_vit(), pictures(), tmp_path, rounds=4, offload_blocks=True, callbacks=[watch])
    assert {len(selected) for selected, _ in watch.seen} == {1, 2}
    assert all(present == selected for selected, present in watch.seen)


@pytest.mark.parametrize("offloads", [False, True])
def test_everything_is_back_after_an_error(tmp_path, offloads):
    module = tiny_vit()
    fit(FedRA(1), module, pictures(), tmp_path, rounds=1)
    before = {name: p.clone() for name, p in module.named_parameters() if not p.requires_grad}
    with pytest.raises(RuntimeError, match="boom"):
        fit(FedRA(1), module, pictures(), tmp_path, evaluate_every=0, offload_blocks=offloads, callbacks=[Fails()])
    after = dict(module.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not list(tmp_path.glob("*/blocks"))


def test_a_folder_that_is_taken_away_is_a_clients_failure_with_the_reason(tmp_path):
    class Takes(Callback):
        def on_round_start(self, federation: Any, round: int, cohort: Any) -> None:
            if round == 1:
                (federation.run_path / "blocks").rename(federation.run_path / "elsewhere")

        def on_exception(self, federation: Any, error: BaseException) -> None:
            (federation.run_path / "elsewhere").rename(federation.run_path / "blocks")

    settings = {"rounds": 9, "evaluate_every": 0, "offload_blocks": True, "callbacks": [Takes()]}
    with pytest.raises(ClientFailure, match="Keep the folder while the run goes on"):
        fit(FedRA(1), tiny_vit(), pictures(), tmp_path, **settings)


def test_a_client_takes_less_by_the_weights_of_the_blocks_it_has_not(tmp_path):
    """Counted over the whole module, whatever runs."""
    peaks = {}
    for offloads in (False, True):
        module, x = tiny_vit(), {"pixel_values": torch.randn(4, 1, 8, 8), "labels": torch.tensor([0, 1, 0, 1])}
        with torch.random.fork_rng():
            module.configure_model()
        module.log = lambda *_, **__: None
        view = AdapterView(module)
        weights = [*module.parameters(), *module.buffers()]
        store = BlockStore(view, tmp_path)
        store.write()
        with store if offloads else nullcontext():
            view.blocks.select([1])
            with LiveBytes(torch.device("cpu"), weights) as memory:
                module.training_step(x).backward()
        peaks[offloads] = memory.peak_bytes
        adapter = {id(p) for p in view.parameters().values()}
        frozen = [p for p in view.blocks.blocks[0].parameters() if id(p) not in adapter]
    saved = 2 * sum(4 * p.numel() - 4 for p in frozen)  # a parameter that is away takes one number
    assert peaks[False] - peaks[True] == saved


def test_what_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match=r"offload_blocks.*none were found"):
        fit(FedAvg(), Net(), points(), tmp_path, offload_blocks=True)
    with pytest.raises(ConfigError, match=r"offload_blocks.*strategy: fsdp"):
        fit(FedRA(), tiny_vit(), pictures(), tmp_path, offload_blocks=True, strategy="fsdp", parallel="within")
    with pytest.raises(ConfigError, match=r"offload_blocks.*algorithm: FLoRA"):
        fit(FLoRA(), tiny_vit(), pictures(), tmp_path, offload_blocks=True)
    assert not list(tmp_path.iterdir())
    fit(FedRA(1), tiny_vit(), pictures(), tmp_path, offload_blocks=True, dry_run=True)
    assert not list(tmp_path.iterdir())
