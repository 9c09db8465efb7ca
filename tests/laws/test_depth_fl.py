"""DepthFL in a real module, and in modules of one's own."""

import csv
import math

import lightning.pytorch as pl
import pytest
import torch
from peft import LoraConfig
from torch import nn

from lit_fed.adapters import AdapterView, add_lora_
from lit_fed.adapters.blocks import require_blocks
from lit_fed.algorithms import DepthFL, FedAvg
from lit_fed.algorithms.base import Serving
from lit_fed.core.errors import ConfigError
from lit_fed.core.names import block_of, exit_of, factor_of, is_head
from lit_fed.engine import Federation
from lit_fed.engine.learner import ModuleLearner
from lit_fed.integrations.export import export_merged
from lit_fed.modules import CausalLM
from tests.engine.tiny import fit, pictures, points, tiny_vit

pytestmark = pytest.mark.usefixtures("one_thread")
CAPACITIES = [1, 2, 3]
# LoRA r = 2 on q and v of width 8, a head of 8 * 2 + 2; in bytes
BLOCK, HEAD = 2 * 32 * 4, 18 * 4


def rows_of(result):
    with open(result.path / "clients.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_with_full_capacities_it_is_fedavg_with_uniform_weights(tmp_path):
    settings = {"rounds": 3, "cohort": 2}
    full = fit(DepthFL(3), tiny_vit(dropout=0.5), pictures(), tmp_path / "a", **settings)
    mean = fit(FedAvg("uniform"), tiny_vit(dropout=0.5), pictures(), tmp_path / "b", **settings)
    assert full.adapter.keys() == mean.adapter.keys()
    assert all(torch.equal(full.adapter[name], mean.adapter[name]) for name in mean.adapter)
    assert full.metrics == mean.metrics


def test_everybody_trains_and_sends_what_is_theirs_and_nothing_else(tmp_path, monkeypatch):
    """Each block runs once a step; a classifier beyond a client's depth is neither trained nor decayed nor sent."""
    module = tiny_vit(optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5))
    ran: list[int] = []
    plain = ModuleLearner.fit

    def watched(learner, **settings):
        stack, view = require_blocks(module), learner._view
        depth, before = len(stack.selected), view.read()
        hooks = [b.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(stack.blocks)]
        ran.clear()
        result = plain(learner, **settings)
        for hook in hooks:
            hook.remove()
        assert ran == list(range(depth)) * result.num_steps
        changed = {name for name, tensor in view.read().items() if not torch.equal(tensor, before[name])}
        owned = {n for n in before if (3 if is_head(n) else exit_of(n) or (block_of(n) or 0) + 1) <= depth}
        assert changed == owned == view.trained().keys()
        return result

    monkeypatch.setattr(ModuleLearner, "fit", watched)
    result = fit(DepthFL(CAPACITIES, local_steps=2), module, pictures(), tmp_path, rounds=2, evaluate_every=0)
    assert ran
    expected = [depth * (BLOCK + HEAD) for depth in CAPACITIES]
    for row, size in zip(rows_of(result), [*expected, *expected], strict=True):
        assert int(row["up_bytes"]) == int(row["down_bytes"]) == size
    assert result.summary["trainable_parameters"] == (3 * BLOCK + 3 * HEAD) / 4


def test_what_nobody_can_hold_stays_as_it_was(tmp_path):
    algorithm = DepthFL([1, 1, 2], local_steps=1)
    once, twice = (fit(algorithm, tiny_vit(), pictures(), tmp_path, rounds=n) for n in (1, 2))
    assert {exit_of(name) for name in twice.adapter} == {None, 1}
    for name, tensor in twice.adapter.items():
        if block_of(name) == 2 or factor_of(name) != "A":  # with B still small, A may move by less than it can
            assert torch.equal(tensor, once.adapter[name]) == (block_of(name) == 2)
    # the first round's classifiers were copies of one head, with B = 0 behind them
    start = fit(DepthFL([1, 1, 2], local_steps=1), tiny_vit(optimizer=no_step), pictures(), tmp_path, rounds=1)
    assert torch.equal(start.adapter["exits.1.weight"], start.adapter["head.weight"])
    assert not torch.equal(once.adapter["exits.1.weight"], once.adapter["head.weight"])


def no_step(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


@pytest.mark.parametrize("ensemble", [True, False])
def test_a_stored_run_predicts_with_its_exits(tmp_path, ensemble):
    """Against the exits of the module that was fitted, one after another, each by its own submodel."""
    algorithm, module = DepthFL(CAPACITIES, ensemble=ensemble), tiny_vit()
    result = fit(algorithm, module, pictures(), tmp_path)
    assert all(torch.equal(tensor, result.adapter[name]) for name, tensor in AdapterView(module).read().items())
    federation = Federation(algorithm, accelerator="cpu", progress=False)
    found = federation.test(tiny_vit(), pictures(), result.path)
    assert found == {k: v for k, v in result.metrics.items() if not k.startswith("initial/")}
    data, module = pictures(), module.eval()
    predicted = federation.predict(tiny_vit(), data, result.path)
    stack, head = require_blocks(module), module.head_module().modules_to_save["global"]
    own = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    for batch, guess in zip(data.predict_loader(), predicted, strict=True):
        logits = []
        for depth in CAPACITIES if ensemble else [3]:
            head.load_state_dict(own if depth == 3 else module.exits[str(depth)]["0"].state_dict())
            with stack.selecting(range(depth)), torch.no_grad():
                logits.append(module.logits(batch))
        torch.testing.assert_close(guess["probs"], torch.stack(logits).mean(0).softmax(-1), rtol=0, atol=1e-6)
        head.load_state_dict(own)


@pytest.mark.parametrize("dynamic", [False, True])
def test_rounds_are_rounds_and_a_resume(tmp_path, dynamic):
    algorithm = DepthFL(CAPACITIES, ramp_rounds=2, dynamic=dynamic)
    settings = {"cohort": 2}
    whole = fit(algorithm, tiny_vit(dropout=0.5), pictures(), tmp_path / "whole", rounds=3, **settings)
    for rounds in (1, 3):
        module = tiny_vit(dropout=0.5)
        parts = fit(algorithm, module, pictures(), tmp_path / "parts", rounds=rounds, ckpt_path="last", **settings)
    assert parts.summary["state_digest"] == whole.summary["state_digest"]
    assert parts.metrics == whole.metrics


@pytest.mark.parametrize("lora", [True, False])
def test_the_merged_model_is_the_deepest_exit(tmp_path, lora):
    from transformers import AutoModelForImageClassification

    def make():
        module = tiny_vit()
        module.lora = module.lora if lora else None
        return module

    module = make()
    result = fit(DepthFL(CAPACITIES, ensemble=False), module, pictures(), tmp_path / "runs")
    export_merged(make(), result.path, tmp_path / "merged")
    merged = AutoModelForImageClassification.from_pretrained(tmp_path / "merged").eval()
    pixels = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = module.eval().logits({"pixel_values": pixels})
        torch.testing.assert_close(merged(pixels).logits, expected, rtol=0, atol=1e-5)  # merged weights are rounded


def test_another_method_on_the_same_module_knows_nothing_of_the_exits(tmp_path):
    module = tiny_vit()
    fit(DepthFL(CAPACITIES), module, pictures(), tmp_path, rounds=1)
    again = fit(DepthFL([2, 2, 3]), module, pictures(), tmp_path, rounds=1)
    assert {exit_of(name) for name in again.adapter} == {None, 2}
    other = fit(FedAvg(), module, pictures(), tmp_path, rounds=1)
    assert {exit_of(name) for name in other.adapter} == {None}
    assert not hasattr(module, "exits")


def test_blocks_on_disk_change_nothing(tmp_path):
    digests = [
        fit(DepthFL(CAPACITIES), tiny_vit(), pictures(), tmp_path, offload_blocks=offload).summary["state_digest"]
        for offload in (False, True)
    ]
    assert digests[0] == digests[1]


def test_a_dry_run_counts_exits(tmp_path):
    result = fit(DepthFL(CAPACITIES), tiny_vit(), pictures(), tmp_path, dry_run=True)
    assert [row["up_bytes"] for row in result.clients.values()] == [depth * (BLOCK + HEAD) for depth in CAPACITIES]
    assert result.summary["trainable_parameters"] == (3 * BLOCK + 3 * HEAD) / 4


def test_heads_are_trained_in_float32_beside_frozen_weights_in_bfloat16(tmp_path):
    module = tiny_vit()
    result = fit(DepthFL(CAPACITIES), module, pictures(), tmp_path, precision="bf16-true")
    assert {p.dtype for p in module.exits.parameters()} == {torch.float32}
    assert module.backbone.vit.embeddings.patch_embeddings.projection.weight.dtype == torch.bfloat16
    assert math.isfinite(result.metrics["global/loss"])


class Own(pl.LightningModule):
    """A module of one's own: blocks, a head, and the three methods; nothing of ours."""

    def __init__(self, lora: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.stem = nn.Linear(2, 6)
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3))
            self.fc = nn.Linear(6, 3)
        if lora:
            add_lora_(self, LoraConfig(r=2, target_modules=r"blocks\.\d\.0"), seed=0)

    def head_module(self):
        return self.fc

    def logits(self, batch):
        x = self.stem(batch[0])
        for block in self.blocks:
            x = x + block(x)
        return self.fc(x)

    def targets(self, batch):
        return batch[1]

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.logits(batch), batch[1])

    def validation_step(self, batch, batch_idx):
        logits = self.logits(batch)
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("val_accuracy", (logits.argmax(-1) == batch[1]).float().mean())

    def predict_step(self, batch, batch_idx):
        return self.logits(batch)

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


@pytest.mark.parametrize("lora", [False, True])
def test_a_module_of_ones_own(tmp_path, lora):
    module = Own(lora)
    result = fit(DepthFL(CAPACITIES), module, points(), tmp_path)
    assert {f"exits.{depth}.{kind}" for depth in (1, 2) for kind in ("weight", "bias")} < result.adapter.keys()
    assert {name for name in result.adapter if is_head(name)} == {"head.weight", "head.bias"}
    assert result.metrics["global/loss"] < result.metrics["initial/loss"]
    federation = Federation(DepthFL(CAPACITIES), accelerator="cpu", progress=False)
    data = points()
    predicted = federation.predict(Own(lora), data, result.path)
    for batch, guess in zip(data.predict_loader(), predicted, strict=True):
        with torch.no_grad():
            x, exits = module.stem(batch[0]), []
            for depth, block in enumerate(module.blocks, start=1):
                x = x + block(x)
                exits.append((module.exits[str(depth)]["0"] if depth < 3 else module.fc)(x))
        torch.testing.assert_close(guess, torch.stack(exits).mean(0), rtol=0, atol=1e-6)


class Deaf(Own):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(Own.logits(self, batch), batch[1]))


class Sparing(Own):
    def configure_optimizers(self):
        return torch.optim.SGD([*self.blocks.parameters(), *self.fc.parameters()], lr=0.1)


class Headless(Own):
    head_module = None


class Mute(Own):
    targets = None


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Deaf, r"`validation_step` of Deaf to ask `self.logits\(batch\)`"),
        (Headless, r"a copy of the task head, but the model has none.*`head_module`"),
        (Mute, r"needs a module that offers `targets\(batch\)`, and Mute does not"),
    ],
)
def test_modules_that_do_not_fit_are_told_before_work_starts(tmp_path, module, said):
    with pytest.raises(ConfigError, match=said):
        fit(DepthFL(CAPACITIES), module(), points(), tmp_path)
    assert not list(tmp_path.rglob("metrics.csv"))


def test_an_optimizer_that_leaves_the_exits_out_is_told(tmp_path):
    with pytest.raises(Exception, match=r"`configure_optimizers` of Sparing to train the heads of the exits"):
        fit(DepthFL(CAPACITIES), Sparing(), points(), tmp_path)


def test_a_language_model_has_no_head_to_copy(tmp_path):
    config = {
        "model_type": "llama", "vocab_size": 31, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2,
        "intermediate_size": 16,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"DepthFL gives every depth a copy of the task head, but the model has none"):
        fit(DepthFL(CAPACITIES), CausalLM(config=config), points(), tmp_path)


class Ruled(FedAvg):
    """Predicts by a rule that asks for everything a step offers."""

    needs = frozenset({"logits", "features"})

    def serve(self, server, private):
        served = super().serve(server, private)
        return Serving(served.adapters, predict=lambda step: step.logits() + 0 * step.features().sum())


def test_a_rule_may_ask_for_all_that_a_step_offers(tmp_path):
    """`features` of our modules calls `logits`, which the rule has taken the place of."""
    ruled, plain = (fit(a, tiny_vit(), pictures(), tmp_path) for a in (Ruled(), FedAvg()))
    assert ruled.metrics == plain.metrics
