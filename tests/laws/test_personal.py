"""Methods that give every client an adapter of its own, in a real module."""

import csv

import pytest
import torch

from lit_fed.adapters import AdapterView
from lit_fed.algorithms import Ditto, FedAMP, FedAvg, FedAvgFT, FedKD, FedPer, FedRep, FedRoD, Local, fedrod
from lit_fed.algorithms.base import GLOBAL
from lit_fed.core.errors import ConfigError
from lit_fed.core.names import exit_of, factor_of, is_head
from lit_fed.core.tree import flatten
from lit_fed.engine import Federation
from lit_fed.engine.learner import ModuleLearner
from lit_fed.engine.private_store import PrivateStore
from tests.engine.tiny import fit, pictures, tiny_vit

pytestmark = pytest.mark.usefixtures("one_thread")
# three blocks of LoRA r = 2 on q and v of width 8, a head of 8 * 2 + 2; in bytes
BODY, HEAD = 3 * 2 * 32 * 4, 18 * 4
FAMILY = {
    "Ditto": lambda: Ditto(0.5, local_steps=3),  # the first step is that of the global adapter
    "FedPer": FedPer,
    "FedRep": lambda: FedRep(head_steps=2),
    "FedAvgFT": lambda: FedAvgFT(2),
    "FedAMP": FedAMP,
    "FedRoD": FedRoD,
    "FedKD": lambda: FedKD(ramp_rounds=2),
}


@pytest.fixture(params=FAMILY)
def make(request):
    return FAMILY[request.param]


def digest_of(result):
    return result.summary["state_digest"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def rows_of(result):
    with open(result.path / "clients.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_rounds_are_rounds_and_a_resume(tmp_path, make):
    settings = {"cohort": 2, "evaluate_every": 0}
    whole = fit(make(), tiny_vit(dropout=0.5), pictures(), tmp_path / "whole", rounds=3, **settings)
    for rounds in (1, 3):
        module = tiny_vit(dropout=0.5)
        parts = fit(make(), module, pictures(), tmp_path / "parts", rounds=rounds, ckpt_path="last", **settings)
    assert digest_of(parts) == digest_of(whole)
    assert parts.metrics == whole.metrics
    assert parts.summary["traffic"] == whole.summary["traffic"]


def test_private_is_in_no_update_and_serves_its_client(tmp_path, make, monkeypatch):
    algorithm, turns = make(), []
    plain = algorithm.local

    def watched(learner, task, private):
        turns.append(plain(learner, task, private))
        return turns[-1]

    monkeypatch.setattr(algorithm, "local", watched)
    result = fit(algorithm, tiny_vit(), pictures(), tmp_path, rounds=3, evaluate_every=0)
    assert len(turns) == 9
    # until its mentee is averaged with others', FedKD's mentor is no different from it
    for update, private in turns[3:] if isinstance(algorithm, FedKD) else turns:
        kept = list(flatten(private)[0].values())
        for name, sent in update.adapter.items():
            assert not any(sent.data_ptr() == own.data_ptr() for own in kept)
            if factor_of(name) != "A":  # with B still small, A may not have moved from where both began
                assert not any(torch.equal(sent, own) for own in kept)
    served = [algorithm.serve(result.server, private).adapters[GLOBAL] for _, private in turns[-3:]]
    assert not any(same(one, other) for one in served for other in served if one is not other)
    assert not any(same(one, result.adapter) for one in served)


def test_dittos_global_adapter_is_fedavgs(tmp_path):
    ditto, fedavg = (fit(a, tiny_vit(dropout=0.5), pictures(), tmp_path, rounds=3) for a in (Ditto(0.3), FedAvg()))
    assert same(ditto.adapter, fedavg.adapter)
    assert [int(row["up_bytes"]) for row in rows_of(ditto)] == [int(row["up_bytes"]) for row in rows_of(fedavg)]
    assert [int(a["steps"]) for a in rows_of(ditto)] == [2 * int(b["steps"]) for b in rows_of(fedavg)]


def test_before_it_fine_tunes_it_is_fedavg(tmp_path):
    tuned = fit(FedAvgFT(2), tiny_vit(dropout=0.5), pictures(), tmp_path, rounds=3)
    fedavg = fit(FedAvg(), tiny_vit(dropout=0.5), pictures(), tmp_path, rounds=2)
    assert same(tuned.adapter, fedavg.adapter)
    assert [int(row["up_bytes"]) for row in rows_of(tuned)] == [BODY + HEAD] * 6 + [0] * 3


def test_a_fedamp_of_one_is_local(tmp_path):
    alone, local = (
        fit(a, tiny_vit(dropout=0.5), pictures(clients=1), tmp_path) for a in (FedAMP(penalty=0.0), Local())
    )
    key = "personal/loss_mean"
    assert alone.metrics[key] == local.metrics[key] != local.metrics["global/loss"]


@pytest.mark.parametrize("algorithm", [FedPer(), FedRep(head_steps=3, local_steps=2)], ids=["FedPer", "FedRep"])
def test_the_head_stays_and_the_body_travels(tmp_path, algorithm, monkeypatch):
    """With weight decay, so that a tensor which the optimizer has would move."""
    module = tiny_vit(optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5))
    start = fit(Local(), tiny_vit(), pictures(), tmp_path, rounds=1).server.adapter
    fits = []
    plain = ModuleLearner.fit

    def watched(learner, **length):
        before = learner.state()
        result = plain(learner, **length)
        changed = {name for name, tensor in learner.state().items() if not torch.equal(tensor, before[name])}
        fits.append(({is_head(name) for name in changed}, result.num_steps))
        return result

    monkeypatch.setattr(ModuleLearner, "fit", watched)
    result = fit(algorithm, module, pictures(), tmp_path, rounds=2)
    assert {int(row["up_bytes"]) for row in rows_of(result)} == {BODY}
    assert {int(row["down_bytes"]) for row in rows_of(result)} == {BODY}
    assert all(torch.equal(result.adapter[name], start[name]) == is_head(name) for name in start)
    expected = [({True}, 3), ({False}, 2)] * 6 if isinstance(algorithm, FedRep) else [({True, False}, fits[0][1])] * 6
    assert fits == expected


def test_fedrod_predicts_with_both_heads_of_one_body(tmp_path):
    """Against logits made of the features and the two linear heads; nobody else's private head is left behind."""
    algorithm, module, data = FedRoD(local_steps=3), tiny_vit(), pictures()
    result = fit(algorithm, module, data, tmp_path, rounds=2)
    assert {int(row["up_bytes"]) for row in rows_of(result)} == {BODY + HEAD}
    assert {int(row["down_bytes"]) for row in rows_of(result)} == {BODY + HEAD}
    left = AdapterView(module).read()
    assert all(torch.equal(tensor, result.adapter[name]) for name, tensor in left.items())
    store = PrivateStore(result.path / "private")
    federation = Federation(algorithm, accelerator="cpu", progress=False)
    for client in ("00", None):
        guesses = federation.predict(tiny_vit(), data, result.path, client=client)
        state = dict(result.adapter)
        if client is not None:
            private = store.get(client, 2)
            labels = torch.cat([batch["labels"] for batch in data.eval_loader("train", client)])
            assert private["counts"] == torch.bincount(labels).tolist()
            assert not torch.equal(private["head"]["exits.3.weight"], result.adapter["exits.3.weight"])
            state |= private["head"]
        module.eval()
        for batch, guess in zip(data.predict_loader(), guesses, strict=True):
            with torch.no_grad():
                features = module.features(batch)
            logits = features @ state["head.weight"].T + state["head.bias"]
            if client is not None:
                logits += features @ state["exits.3.weight"].T + state["exits.3.bias"]
            torch.testing.assert_close(guess["probs"], logits.softmax(-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_private_head_of_fedrod_does_not_move_the_body(tmp_path, monkeypatch, precision):
    """With plain cross-entropy of the generic head alone, body and generic head end the same to the bit."""

    def generic_alone(counts, depth):
        def objective(step):
            prior = torch.tensor(counts + [0] * (2 - len(counts))).log()
            own = sum(0 * p.sum() for name, p in step.parameters.items() if exit_of(name) is not None)
            return torch.nn.functional.cross_entropy(step.logits().float() + prior, step.targets()) + own

        return objective

    both = fit(FedRoD(local_steps=3), tiny_vit(), pictures(), tmp_path, precision=precision)
    monkeypatch.setattr(fedrod, "decoupled", generic_alone)
    alone = fit(FedRoD(local_steps=3), tiny_vit(), pictures(), tmp_path, precision=precision)
    assert same(both.adapter, alone.adapter)


def test_fedrod_counts_in_a_dry_run(tmp_path):
    result = fit(FedRoD(), tiny_vit(), pictures(), tmp_path, dry_run=True)
    assert {row["up_bytes"] for row in result.clients.values()} == {BODY + HEAD}


def test_fedkd_sends_the_mentees_factors_and_keeps_its_mentor(tmp_path):
    """Six pairs of factors and the head's matrix, all 2 x 8 numbers: 10 if one direction is enough, 0 without any."""
    result = fit(FedKD(0.3, 0.3, local_steps=3), tiny_vit(), pictures(), tmp_path, rounds=1)
    sizes = [int(row["up_bytes"]) / 4 for row in rows_of(result)]
    assert all(2 < size <= 13 * 10 + 2 and (size - 2) % 10 == 0 for size in sizes)  # half of it is in one, at least
    assert {int(row["down_bytes"]) for row in rows_of(result)} == {BODY + HEAD}
    [row] = result.history
    assert row["server/upload_fraction"] == pytest.approx(sum(sizes) / (3 * 13 * 16 + 3 * 2))
    most = fit(FedKD(), tiny_vit(), pictures(), tmp_path, dry_run=True)
    assert {row["up_bytes"] for row in most.clients.values()} == {BODY + HEAD}
    exact = fit(FedKD(1.0, 1.0), tiny_vit(), pictures(clients=1), tmp_path, rounds=1)
    mentor = PrivateStore(exact.path / "private").get("00", 1)["mentor"]
    for name, tensor in exact.adapter.items():  # both start alike, so that in the first round neither teaches the other
        torch.testing.assert_close(mentor[name], tensor, rtol=0, atol=1e-6)


def test_fedkd_needs_lora(tmp_path):
    module = tiny_vit()
    module.lora = None
    with pytest.raises(ConfigError, match="Expected a module with LoRA, so that it can have a slot 'local'"):
        fit(FedKD(), module, pictures(), tmp_path)
