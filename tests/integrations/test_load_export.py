"""What is exported and loaded predicts to the bit as the run does, whatever a client is served."""

from pathlib import Path

import pytest
import torch

from lit_fed import load_export
from lit_fed.adapters import AdapterView
from lit_fed.algorithms import Algorithm, AllSmall, DepthFL, FDLoRA, FedAvg, FedDPA, FedFMSL, FedRoD
from lit_fed.core.errors import ConfigError
from lit_fed.engine import Federation
from lit_fed.engine.served import RULE_FILE, rule_in
from lit_fed.engine.storage import save_tree
from lit_fed.integrations.export import export_adapter, export_merged
from tests.engine.tiny import Net, fit, pictures, points, tiny_vit

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS: dict[str, tuple[Algorithm, str | None]] = {
    "one adapter": (FedAvg(local_steps=1), None),
    "fused": (
        FDLoRA(federated_rounds=1, sync_every="never", search="grid", budget=4, few_shot=2, local_steps=1), "00",
    ),
    "gate": (FedFMSL(1, "all", start=1, gate_width=4, local_steps=1), "00"),
    "gate of features": (FedFMSL(1, "all", start=1, gate_width=4, mix="features", local_steps=1), "00"),
    "two heads": (FedRoD(local_steps=1), "00"),
    "exits": (DepthFL([3, 2, 1], local_steps=1), None),
    "instances": (FedDPA(federated_rounds=2, local_steps=1), "00"),
    "first blocks": (AllSmall([3, 2, 2], local_steps=1), None),
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_the_runs_predictions(tmp_path: Path, name: str) -> None:
    (algorithm, client), data = METHODS[name], pictures()
    path = fit(algorithm, tiny_vit(), data, tmp_path / "runs", rounds=3, evaluate_every=0).path
    batches = list(data.predict_loader())
    # The lean kernels, which a module of one's own does not run with, may round the last bit otherwise.
    federation = Federation(algorithm, accelerator="cpu", progress=False, kernels="torch")
    expected = [batch["probs"] for batch in federation.predict_new(tiny_vit(), batches, path, client)]
    export_adapter(path, tmp_path / "to", client)
    again = federation.predict_new(tiny_vit(), batches, tmp_path / "to")
    assert all(torch.equal(one["probs"], other) for one, other in zip(again, expected, strict=True))
    module = load_export(tmp_path / "to", tiny_vit())
    with torch.no_grad():
        found = [module.predict_step(batch)["probs"] for batch in batches]
        own = [module(pixel_values=batch["pixel_values"]).softmax(-1) for batch in batches]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    ruled = name not in ("one adapter", "fused", "first blocks")
    assert all(torch.equal(one, other) for one, other in zip(own, found, strict=True)) != ruled
    if ruled or name == "first blocks":
        with pytest.raises(ConfigError, match=r"no one set of weights .* Export without `--merge`"):
            export_merged(tiny_vit(), path, tmp_path / "merged", client)


def test_a_module_of_ones_own(tmp_path: Path) -> None:
    result = fit(FedAvg(local_steps=1), Net(), points(), tmp_path / "runs", rounds=1)
    export_adapter(result.path, tmp_path / "to")
    module = load_export(tmp_path / "to", Net())
    found = AdapterView(module).read()
    assert found.keys() == result.adapter.keys()
    assert all(torch.equal(tensor, result.adapter[name]) for name, tensor in found.items())
    with pytest.raises(ConfigError, match="made by a script"):
        load_export(tmp_path / "to")
    with pytest.raises(ConfigError, match="Expected `folder` to be an export"):
        load_export(result.path)


class Shifted(FedAvg):
    """Predicts by a rule that is no dataclass."""

    def serve(self, server, private):
        from lit_fed.algorithms.base import Serving

        return Serving(super().serve(server, private).adapters, predict=lambda step: step.logits() + 1)


def test_a_rule_that_cannot_be_stored(tmp_path: Path) -> None:
    path = fit(Shifted(local_steps=1), tiny_vit(), pictures(), tmp_path / "runs", rounds=1).path
    with pytest.raises(ConfigError, match="Expected the rule that a client predicts with to be a dataclass"):
        export_adapter(path, tmp_path / "to")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("named", "said"),
    [("os:system", "to be a dataclass, but it is none"), ("not_there:Rule", "Put the file of that algorithm where")],
)
def test_a_rule_that_is_none(tmp_path: Path, named: str, said: str) -> None:
    rule = {"class": named, "fields": {"command": f"touch {tmp_path / 'done'}"}}
    save_tree(tmp_path / RULE_FILE, {"blocks": None, "rule": rule})
    with pytest.raises(ConfigError, match=said):
        rule_in(tmp_path)
    assert not (tmp_path / "done").exists()
