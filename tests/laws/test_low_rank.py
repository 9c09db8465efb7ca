"""Lower ranks and folded weights in a real module: what is trained, what is served, and what is left behind."""

import csv
import json

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import AutoModelForImageClassification

from lit_fed.adapters import AdapterView
from lit_fed.algorithms import FedAvg, FedExLoRA, FFALoRA, FlexLoRA, FLoRA, HetLoRA
from lit_fed.core.errors import ConfigError
from lit_fed.core.names import factor_of, is_head
from lit_fed.core.products import mean_product
from lit_fed.core.rank import pad, pairs, truncate
from lit_fed.core.seeding import isolated_rng
from lit_fed.core.types import Client, ModelInfo, Setting, Update
from lit_fed.engine import Federation
from lit_fed.engine import run as engine_run
from lit_fed.integrations.export import export_adapter, export_merged
from tests.engine.tiny import fit, pictures, tiny_vit

pytestmark = pytest.mark.usefixtures("one_thread")
FAMILY = [HetLoRA, FlexLoRA, FLoRA, FedExLoRA, FFALoRA]
RANKED = [HetLoRA, FlexLoRA, FLoRA]
FOLDING = [FLoRA, FedExLoRA]
FLOAT32 = 1e-5  # W + BA in one matrix or in two products, three blocks
PIXELS = torch.linspace(-1, 1, 6 * 64).reshape(6, 1, 8, 8)
LABELS = torch.tensor([0, 1, 0, 1, 1, 0])


def names(kind):
    return kind.__name__


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1)


def built(rank=2, alpha=4, **lora):
    module = tiny_vit()
    module.lora = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["q_proj", "v_proj"], **lora)
    with isolated_rng(0, "init"):
        module.configure_model()
    return module.eval()


def values(view, seed=0):
    random = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(t.shape, generator=random) for name, t in view.read().items()}


@torch.no_grad()
def logits(module):
    return module.logits({"pixel_values": PIXELS}).clone()


def step(module, optimizer):
    optimizer.zero_grad()
    nn.functional.cross_entropy(module.logits({"pixel_values": PIXELS}), LABELS).backward()
    optimizer.step()


def digest_of(result):
    return result.summary["state_digest"]


# -- lower ranks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
def test_training_padded_factors_is_training_at_the_lower_rank(optimizer):
    """Rank 1 in a module of rank 3 and alpha 6, and a module of rank 1 and alpha 2: the same scaling and steps."""
    make = adamw if optimizer == "adamw" else lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1)
    wide, narrow = built(3, 6), built(1, 2)
    views = [AdapterView(module) for module in (wide, narrow)]
    start = truncate(values(views[0]), 1)
    views[0].write(pad(start, views[0].read()))
    views[1].write(start)
    optimizers = [make(list(view.parameters().values())) for view in views]
    for _ in range(4):
        for module, one in zip((wide, narrow), optimizers, strict=True):
            step(module, one)
        for a, b in pairs(views[0].tensors()).values():
            assert not a[1:].any()  # to the bit
            assert not b[:, 1:].any()
            assert not a.grad[1:].any()
            assert not b.grad[:, 1:].any()
    trained, expected = truncate(views[0].read(), 1), views[1].read()
    for name, tensor in expected.items():
        assert not torch.equal(tensor, start[name])
        # Adam divides by gradients' own size, so that rounding of tiny ones shows
        torch.testing.assert_close(trained[name], tensor, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", RANKED, ids=names)
def test_weak_clients_send_and_get_what_their_rank_takes(tmp_path, kind):
    """Rank 2, six layers of 8 x 8, a head of 18 numbers: a component is 6 x 16 numbers."""
    options = {"gamma": 1.0} if kind is HetLoRA else {}
    result = fit(kind([1, 2, 0.5], **options), tiny_vit(), pictures(), tmp_path, rounds=1)
    with open(result.path / "clients.csv", newline="") as file:
        rows = {row["client"]: row for row in csv.DictReader(file)}
    assert [int(rows[c]["up_bytes"]) for c in ("00", "01", "02")] == [4 * (96 * rank + 18) for rank in (1, 2, 1)]
    assert [int(rows[c]["down_bytes"]) for c in ("00", "01", "02")] == [4 * (96 * rank + 18) for rank in (1, 2, 1)]


def test_clients_that_fold_get_the_dense_sum(tmp_path):
    result = fit(FLoRA(1), tiny_vit(), pictures(), tmp_path, rounds=2)
    with open(result.path / "clients.csv", newline="") as file:
        down = [int(row["down_bytes"]) for row in csv.DictReader(file)]
    assert down == [4 * (96 + 18)] * 3 + [4 * (96 + 18 + 6 * 64)] * 3


def test_pruned_ranks_are_what_is_planned_with(tmp_path):
    """A penalty that outweighs the loss. In the first round the tail begins with B = 0 and cannot become weaker."""
    algorithm = HetLoRA(gamma=0.5, penalty=100.0, local_steps=1)
    result = fit(algorithm, tiny_vit(optimizer=adamw), pictures(), tmp_path, rounds=4)
    with open(result.path / "clients.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    full, pruned = 4 * (2 * 96 + 18), 4 * (96 + 18)
    assert {int(row["up_bytes"]) for row in rows[:3]} == {full}
    assert {int(row["down_bytes"]) for row in rows[-3:]} == {pruned}


def test_ffa_sends_no_a(tmp_path):
    result = fit(FFALoRA(), tiny_vit(), pictures(), tmp_path, rounds=2)
    start = fit(FedAvg(), tiny_vit(optimizer=lambda p: torch.optim.SGD(p, lr=0.0)), pictures(), tmp_path, rounds=1)
    half = 4 * (96 + 18)  # B is half of 2 x 96
    assert result.summary["traffic"] == {"up_bytes": 6 * half, "down_bytes": 6 * half}
    for name, tensor in result.adapter.items():
        assert torch.equal(tensor, start.adapter[name]) == (factor_of(name) == "A")


# -- the function that is served -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FOLDING, ids=names)
def test_served_is_the_mean_of_the_clients_products(kind):
    """Two rounds of random updates, against a model whose weights were changed by hand."""
    module = built()
    view = AdapterView(module)
    clients = [Client("a", 3), Client("b", 1)]
    algorithm = kind()
    server = algorithm.init(view.read(), Setting(ModelInfo(3, True, 1, 1, rank=view.rank), tuple(clients), 2))
    expected = dict.fromkeys(pairs(server.adapter), 0)
    for round in range(2):
        adapters = [values(view, seed=10 * round + i) for i in range(2)]
        if kind is FLoRA:
            adapters[0] = truncate(adapters[0], 1)  # ranks may differ
        for layer, (a, b) in pairs(server.adapter).items():
            mean = mean_product([pairs(adapter)[layer] for adapter in adapters], [3.0, 1.0]).dense()
            # a client begins with the server's product, so that its own takes the place of that
            expected[layer] = expected[layer] - b.double() @ a.double() + mean
        updates = [Update(c.id, adapter, c.num_examples) for c, adapter in zip(clients, adapters, strict=True)]
        server = algorithm.merge(server, updates)
        assert server.metrics["aggregation_error"] < 1e-6
    serving = algorithm.serve(server, {})
    view.write(serving.adapters["global"])
    view.fold(serving.folded)
    served = logits(module)
    view.fold({})
    assert (served - logits(module)).abs().max() > 1e-2

    by_hand = built()
    head = {name: tensor for name, tensor in server.adapter.items() if is_head(name)}
    AdapterView(by_hand).write({name: torch.zeros_like(t) for name, t in view.read().items()} | head)
    with torch.no_grad():
        for path, layer in by_hand.named_modules():
            if hasattr(layer, "lora_A"):
                product = expected[f"blocks.{path.partition('.layers.')[2]}"]
                layer.base_layer.weight += (2.0 * product).float()  # alpha 4, r 2
    torch.testing.assert_close(served, logits(by_hand), rtol=0, atol=FLOAT32)


# -- runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILY, ids=names)
def test_same_seed_twice_and_in_any_order_of_turns(tmp_path, kind, monkeypatch):
    """A turn begins unfolded: what a client gets does not depend on who was there before."""
    runs = [fit(kind(), tiny_vit(dropout=0.5), pictures(), tmp_path, rounds=3)]
    plain = engine_run.sample_cohort
    monkeypatch.setattr(engine_run, "sample_cohort", lambda *a, **k: plain(*a, **k)[::-1])
    runs.append(fit(kind(), tiny_vit(dropout=0.5), pictures(), tmp_path, rounds=3))
    assert digest_of(runs[0]) == digest_of(runs[1])
    assert runs[0].metrics == runs[1].metrics


@pytest.mark.parametrize("kind", FAMILY, ids=names)
def test_rounds_are_rounds_and_a_resume(tmp_path, kind):
    whole = fit(kind(), tiny_vit(), pictures(), tmp_path / "whole", rounds=3, cohort=2)
    fit(kind(), tiny_vit(), pictures(), tmp_path / "parts", rounds=2, cohort=2)
    parts = fit(kind(), tiny_vit(), pictures(), tmp_path / "parts", rounds=3, cohort=2, ckpt_path="last")
    assert digest_of(parts) == digest_of(whole)
    assert parts.metrics == whole.metrics
    errors = [row["server/aggregation_error"] for row in whole.history]
    assert [row["server/aggregation_error"] for row in parts.history] == errors
    if kind in (HetLoRA, FlexLoRA):  # the mean of two clients' products has rank 4, the module has 2
        assert errors[-1] > 1e-5
    else:
        assert max(errors) < 1e-6


@pytest.mark.parametrize("kind", FOLDING, ids=names)
def test_the_module_holds_what_is_served_and_its_own_weights_come_back(tmp_path, kind):
    module, untouched = tiny_vit(), built()
    data = pictures()
    result = fit(kind(), module, data, tmp_path)
    frozen = dict(untouched.named_parameters())
    folded = [n for n, p in module.named_parameters() if not p.requires_grad and not torch.equal(p, frozen[n])]
    assert folded
    assert all(name.endswith(("q_proj.base_layer.weight", "v_proj.base_layer.weight")) for name in folded)
    federation = Federation(kind(), rounds=2, accelerator="cpu", progress=False, pictures=False, run_dir=tmp_path)
    for used in (module, tiny_vit()):  # as the run left it, and fresh
        assert federation.test(used, data, result.path) == pytest.approx(
            {name: value for name, value in result.metrics.items() if not name.startswith("initial/")}, abs=0
        )
    fit(FedAvg(), module, data, tmp_path, rounds=1)  # another federation, on the module's own weights
    assert all(torch.equal(p, frozen[n]) for n, p in module.named_parameters() if not p.requires_grad)


@pytest.mark.parametrize("kind", FOLDING, ids=names)
def test_a_run_that_folds_is_exported_as_a_whole_model(tmp_path, kind):
    module = tiny_vit()
    result = fit(kind(), module, pictures(), tmp_path / "runs")
    served = logits(module.eval())
    assert sorted(path.name for path in (result.path / "adapters" / "global").iterdir()) == [
        "adapter.safetensors",
        "folded.safetensors",
    ]
    with pytest.raises(ConfigError, match="`--merge`"):
        export_adapter(result.path, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    export_merged(tiny_vit(), result.path, tmp_path / "merged")
    merged = AutoModelForImageClassification.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(pixel_values=PIXELS).logits, served, rtol=0, atol=FLOAT32)
    assert json.loads((result.path / "summary.json").read_text())["traffic"]["down_bytes"] > 0


@pytest.mark.parametrize("kind", FOLDING, ids=names)
def test_evaluation_folds_once(tmp_path, kind, monkeypatch):
    """Six evaluations share one serving."""
    folds = []
    plain = AdapterView.fold
    monkeypatch.setattr(AdapterView, "fold", lambda view, deltas: folds.append(len(deltas)) or plain(view, deltas))
    fit(kind(), tiny_vit(), pictures(), tmp_path, rounds=2, evaluate_every=0)
    turns = [0] * 3 * 2 + [0, 6] * 3  # a turn begins unfolded, then its deltas: none in the first round
    assert folds == [0, *turns, 6]  # once at the very start; the evaluation after the last round loads what stays


@pytest.mark.parametrize("kind", FOLDING, ids=names)
def test_sharded_weights_are_not_folded_into(tmp_path, kind):
    with pytest.raises(ConfigError, match=r"`federation\.strategy` not to be 'fsdp' with `algorithm: F"):
        fit(kind(), tiny_vit(), pictures(), tmp_path, strategy="fsdp", parallel="within")


@pytest.mark.parametrize("kind", FAMILY, ids=names)
def test_dry_run(tmp_path, kind):
    result = fit(kind(), tiny_vit(), pictures(), tmp_path, dry_run=True)
    per_client = 4 * (96 + 18) if kind is FFALoRA else 4 * (2 * 96 + 18)
    assert result.summary["traffic"] == {"up_bytes": 3 * per_client, "down_bytes": 3 * per_client}


@pytest.mark.parametrize("kind", FAMILY, ids=names)
def test_a_module_without_lora_is_refused(tmp_path, kind):
    module = tiny_vit()
    module.lora = None
    with pytest.raises(ConfigError, match=r"`model\.lora`"):
        fit(kind(), module, pictures(), tmp_path)
