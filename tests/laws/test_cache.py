"""With and without the cache: the same bits, and less computed. In real modules, over whole federations."""

from collections import Counter
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from torch.utils.data import DataLoader

from lit_fed import CausalLM, FedAvg, FederatedDataModule, FedFMSL, TextClassifier
from lit_fed.adapters.blocks import require_blocks
from lit_fed.algorithms import FedDPA, FedRep
from lit_fed.algorithms.base import LOCAL
from lit_fed.callbacks import Callback
from lit_fed.core.errors import ConfigError
from lit_fed.core.names import block_of, is_head
from lit_fed.data.table import TensorTable, collate_table
from lit_fed.engine import prefix_cache, row_store
from tests.engine.tiny import Net, Pictures, fit, pictures, points, sgd, tiny_vit

pytestmark = pytest.mark.usefixtures("one_thread")


class Top(FedAvg):
    """FedAvg of the head and the last blocks alone."""

    def __init__(self, blocks: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.blocks = blocks

    def local(self, learner: Any, task: Any, private: Any) -> Any:
        learner.activate(where=lambda name: is_head(name) or (block_of(name) or 0) >= 3 - self.blocks)
        return super().local(learner, task, private)


class Runs(pl.Callback):
    """Counts how often each block runs while clients train."""

    def __init__(self) -> None:
        self.blocks: Counter[int] = Counter()
        self._hooks: list[Any] = []

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        for i, block in enumerate(require_blocks(module).blocks):
            inside = next(block.children())
            self._hooks.append(inside.register_forward_pre_hook(lambda *_, i=i: self.blocks.update([i])))

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        while self._hooks:
            self._hooks.pop().remove()


class Texts(pl.LightningDataModule):
    """Rows of tokens, some of them padded; labels are those of a classifier, or the tokens."""

    def __init__(self, language_model: bool) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(3)
        mask = (torch.arange(6) < torch.randint(3, 7, (24, 1), generator=random)).long()
        tokens = torch.randint(3, 31, (24, 6), generator=random) * mask
        labels = tokens.masked_fill(mask == 0, -100) if language_model else (tokens[:, 0] > 16).long()
        self.table = TensorTable({"input_ids": tokens, "attention_mask": mask, "labels": labels})

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.table, 4, shuffle=True, collate_fn=collate_table)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.table, 8, collate_fn=collate_table)


def texts(language_model: bool = False) -> FederatedDataModule:
    from flwr_datasets.partitioner import IidPartitioner

    partitioner = IidPartitioner(num_partitions=3)
    return FederatedDataModule(Texts(language_model), partitioner, val_fraction=0.25, test_fraction=0.25)


TOKENS = {"vocab_size": 31, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3, "pad_token_id": 0}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT = {"model_type": "bert", **TOKENS, "intermediate_size": 32, "max_position_embeddings": 16, **NO_DROPOUT}
LLAMA = {"model_type": "llama", **TOKENS, "intermediate_size": 32, "num_key_value_heads": 1}
GPT2 = {
    "model_type": "gpt2", "vocab_size": 31, "n_embd": 16, "n_head": 2, "n_layer": 3, "n_positions": 16,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip


def bert() -> TextClassifier:
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["query", "value"])
    return TextClassifier(2, pooling="mean", config=BERT, lora=lora, optimizer=sgd)  # with dropout before the head


def language_model(config: dict[str, Any], targets: list[str]) -> CausalLM:
    return CausalLM(config=config, lora=LoraConfig(r=2, lora_alpha=4, target_modules=targets), optimizer=sgd)


def ten_pictures_each() -> FederatedDataModule:
    """In batches of 4, 4 and 2."""
    from flwr_datasets.partitioner import IidPartitioner

    partitioner = IidPartitioner(num_partitions=3)
    return FederatedDataModule(Pictures(60), partitioner, val_fraction=0.25, test_fraction=0.25)


MODELS = {
    "vit": (tiny_vit, pictures),
    "vit, batches of 4 and 2": (tiny_vit, ten_pictures_each),
    "bert": (bert, texts),
    "llama": (lambda: language_model(LLAMA, ["q_proj", "v_proj"]), lambda: texts(True)),
    "gpt2": (lambda: language_model(GPT2, ["c_attn"]), lambda: texts(True)),
}


def method(**settings: Any) -> FedFMSL:
    given = {"stage1_rounds": 2, "schedule": "fixed", "start": 1, "every": 1, "gate_width": 4, "local_epochs": 4}
    return FedFMSL(**{**given, **settings})


def both(algorithm: Any, model: str, tmp_path: Any, **settings: Any) -> tuple[Counter[int], Counter[int]]:
    """Run a federation without and with the cache; the results are equal. How often each block has run."""
    make, data = MODELS[model]
    found = []
    for cache in (None, settings.pop("cache", "1 GB")):
        runs = Runs()
        given = {"callbacks": [runs], **settings}
        result = fit(algorithm, make(), data(), tmp_path / str(cache), cache=cache, **given)
        assert not list(result.path.glob("cache_*"))
        found.append((result, runs.blocks))
    (without, all_runs), (with_cache, fewer) = found
    assert with_cache.summary["state_digest"] == without.summary["state_digest"]
    assert with_cache.metrics == without.metrics
    return all_runs, fewer


@pytest.mark.parametrize("model", ["vit", "bert", "llama", "gpt2"])
def test_fedfmsl_is_the_same_in_both_stages(tmp_path, model):
    """Rounds of stage 1 with one and two blocks, of stage 2 with one and two."""
    without, with_cache = both(method(), model, tmp_path, rounds=4)
    assert with_cache[0] < without[0] / 3
    assert with_cache[0] < with_cache[1] < with_cache[2]


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
def test_it_is_the_same_with_a_last_batch_that_is_smaller(tmp_path, precision):
    """Three batches an epoch, which are shuffled anew: now an example is in a batch of 4, and now in one of 2."""
    without, with_cache = both(method(), "vit, batches of 4 and 2", tmp_path, rounds=4, precision=precision)
    assert sum(with_cache.values()) < sum(without.values())


SETTINGS = [
    {"mix": "probs", "gate_input": "global"},
    {"mix": "features", "activation": "sliding", "aggregate_gate": "adapter"},
    {"mix": "features", "gate_input": "global", "order": "first_last"},
    {"capacities": [1, 2, 3], "dynamic": True, "local_start": "fresh", "weighing": "even"},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_fedfmsl_is_the_same_with_other_settings(tmp_path, settings):
    both(method(**settings), "vit", tmp_path, rounds=4, cohort=2)


def test_how_often_blocks_run(tmp_path):
    """One block of three is trained: 3 clients, 5 turns of 2 epochs of one batch each.

    Every client computes its examples once. Of all that come up again, two batches are tried; the others are recalled.
    """
    without, with_cache = both(Top(1, local_epochs=2), "vit", tmp_path, rounds=5)
    assert without == {0: 30, 1: 30, 2: 30}
    assert with_cache == {0: 3 + 2, 1: 3 + 2, 2: 30}


def test_in_stage_2_the_global_expert_and_the_base_model_run_once(tmp_path):
    """From the beginning in stage 2 with all blocks: the local expert runs always. 3 clients, 5 turns, 2 epochs."""
    algorithm = method(stage1_rounds=0, schedule="all", start=None, local_epochs=2)
    without, with_cache = both(algorithm, "vit", tmp_path, rounds=5)
    assert without == dict.fromkeys(range(3), 3 * 30)
    assert with_cache == dict.fromkeys(range(3), 30 + 2 * (3 + 2))


def test_what_does_not_fit_into_memory_is_in_files(tmp_path, monkeypatch):
    monkeypatch.setattr(row_store, "_LEAVE_FREE", 0.0)
    sizes = []

    class Looks(Callback):
        def on_client_end(self, federation: Any, round: int, client: str) -> None:
            sizes.append(sum(file.stat().st_size for file in federation.run_path.glob("cache_0/*")))

    runs = Runs()
    both(Top(1, local_epochs=2), "vit", tmp_path, rounds=5, cache="500 B", callbacks=[runs, Looks()])
    # an example is 5 tokens of 8 numbers of 4 bytes: 3 of 12 fit into 500 bytes, 9 do not
    assert max(sizes) == 9 * 160
    # without: 30. With: what goes into a file is computed twice (one batch of each client), and two batches are tried
    assert runs.blocks[0] == 30 + 3 * 2 + 2


def test_it_is_for_every_algorithm(tmp_path):
    """FedRep trains the head with all blocks frozen, then the blocks."""
    without, with_cache = both(FedRep(head_epochs=6, local_epochs=2), "vit", tmp_path, rounds=2)
    assert without[0] == 3 * 2 * (6 + 2)
    assert with_cache[0] < without[0]
    assert with_cache[0] == with_cache[2]


def test_a_blend_of_adapters_is_none_of_them(tmp_path, said):
    """The local adapter's lower blocks never change, the global ones mixed into them do."""

    class TopOfLocal(FedDPA):
        def _fit(self, learner: Any, blend: Any) -> Any:
            if blend is not None:
                learner.activate(LOCAL, where=lambda name: is_head(name) or block_of(name) == 2)
            return super()._fit(learner, blend)

    both(TopOfLocal(variant="T", local_epochs=2), "vit", tmp_path, rounds=4)
    assert not said


def test_another_mask_and_another_adapter_below_make_everything_new(tmp_path):
    """Every client's round has another prefix: two blocks, then one, then two with other weights."""

    class Changes(Top):
        def local(self, learner: Any, task: Any, private: Any) -> Any:
            self.blocks = 2 if learner.round == 1 else 1
            return super().local(learner, task, private)

    without, with_cache = both(Changes(1, local_epochs=3), "vit", tmp_path, rounds=3)
    assert without == dict.fromkeys(range(3), 27)
    # Of 3 epochs the first one is computed. Tried are two batches of one block, two of two blocks, and two more when
    # the second block has been trained: before, what its LoRA adds is zero, which tells nothing.
    assert with_cache[0] == 3 * 3 + 2 + 2 + 2
    assert with_cache[1] == (3 + 2) + 9 + (3 + 2)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What users are told."""
    lines: list[str] = []
    monkeypatch.setattr(prefix_cache, "rank_zero_info", lines.append)
    return lines


class Noisy(Pictures):
    """A random part of every picture is dark, whenever it is drawn."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        own_generator = torch.Generator().manual_seed(1)

        def darken(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            shape = batch["pixel_values"].shape
            random = torch.rand(shape, generator=own_generator) if own else torch.rand(shape)
            return {**batch, "pixel_values": batch["pixel_values"] * (random > 0.2)}

        self.collate = darken


@pytest.mark.parametrize(
    ("dropout", "data", "reason"),
    [
        (0.5, Pictures, "random numbers are drawn in frozen blocks"),
        (0.0, lambda: Noisy(own=False), "random numbers are drawn before"),
        (0.0, lambda: Noisy(own=True), "different whenever they are drawn"),
    ],
)
def test_it_is_off_where_nothing_comes_twice_and_says_so_once(tmp_path, said, dropout, data, reason):
    from flwr_datasets.partitioner import IidPartitioner

    digests = set()
    for cache in (None, "1 GB"):
        source = FederatedDataModule(data(), IidPartitioner(num_partitions=3), val_fraction=0.25, test_fraction=0.25)
        result = fit(method(), tiny_vit(dropout), source, tmp_path, rounds=4, cache=cache)
        digests.add(result.summary["state_digest"])
    assert len(digests) == 1
    (line,) = said
    assert "federation.cache" in line
    assert reason in line


def test_where_nothing_is_frozen_nobody_hears_of_it(tmp_path, said):
    fit(FedAvg(), tiny_vit(dropout=0.5), pictures(), tmp_path)
    fit(FedAvg(), Net(), points(), tmp_path)
    assert not said


@pytest.mark.parametrize("size", ["much", "12", "-1 GB"])
def test_a_size_that_is_none(tmp_path, size):
    with pytest.raises(ConfigError, match=r"federation\.cache"):
        fit(FedAvg(), tiny_vit(), pictures(), tmp_path, cache=size)


class Kills(Callback):
    """Ends a run at a moment, as Ctrl-C does."""

    def __init__(self, round: int, client: str | None) -> None:
        self.round, self.client = round, client

    def on_round_start(self, federation: Any, round: int, cohort: Any) -> None:
        if self.client is None and round == self.round:
            raise KeyboardInterrupt

    def on_client_end(self, federation: Any, round: int, client: str) -> None:
        if (round, client) == (self.round, self.client):
            raise KeyboardInterrupt


def ends_at_plateaus() -> FedFMSL:
    """A window of two accuracies less than 1.1 apart is a plateau: blocks are activated while the stages go on."""
    return method(schedule="plateau", window=2, eps=1.1, local_epochs=3, aggregate_gate="adapter")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of two rounds of stage 1 and three of stage 2 that nobody has killed, without the cache."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    result = fit(ends_at_plateaus(), tiny_vit(), pictures(), folder, rounds=5, cache=None)
    torch.set_num_threads(threads)
    return result


@pytest.mark.parametrize("cache", [None, "1 GB"])
@pytest.mark.parametrize(
    "moments",
    [[(0, "01")], [(1, "00")], [(2, None)], [(2, "01")], [(3, "00")], [(1, "01"), (2, None), (3, "02")]],
    ids=["in stage 1", "in its last round", "at the change", "after it", "in stage 2", "in all of them"],
)
def test_killed_and_resumed_is_the_same(tmp_path, whole, moments, cache):
    settings = {"rounds": 5, "cache": cache, "ckpt_path": "last"}
    for moment in moments:
        with pytest.raises(KeyboardInterrupt):
            fit(ends_at_plateaus(), tiny_vit(), pictures(), tmp_path, callbacks=[Kills(*moment)], **settings)
        (left_behind := tmp_path / "version_0" / "cache_0").mkdir(exist_ok=True)  # as if nobody had cleaned up
    resumed = fit(ends_at_plateaus(), tiny_vit(), pictures(), tmp_path, **settings)
    assert not left_behind.exists()
    assert resumed.path.name == "version_0"
    assert resumed.summary["state_digest"] == whole.summary["state_digest"]
    assert resumed.metrics == whole.metrics
