"""Model cards: what they say is so, and their Python loads what they are of."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForImageClassification

from lit_fed.algorithms import FedAvg, FedFMSL, Local
from lit_fed.cli import main
from lit_fed.core.errors import ConfigError
from lit_fed.integrations.export import export_adapter, export_merged
from tests.engine.tiny import Net, fit, pictures, points, tiny_vit

CONFIG = """
model: {class_path: ImageClassifier, init_args: {num_labels: 10, lora: {r: 2, target_modules: [q_proj]}}}
data: {source: {class_path: Digits, init_args: {domains: [plain, noisy]}}, batch_size: 32}
algorithm: {class_path: Local, init_args: {local_steps: 1}}
federation: {rounds: 1, accelerator: cpu, progress: false, pictures: false, threads: 1, run_dir: FOLDER}
"""


def sections(folder: Path) -> dict[str, str]:
    _, front, body = (folder / "README.md").read_text("utf-8").split("---\n", 2)
    parts = re.split(r"^#+ (.+)\n", body, flags=re.MULTILINE)
    return {"front": front, **dict(zip(parts[1::2], parts[2::2], strict=True))}


def run_python(text: str) -> dict[str, Any]:
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One round on the embedded model; every client keeps its own."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "c.yaml").write_text(CONFIG.replace("FOLDER", str(folder)))
    assert main(["fit", "--config", str(folder / "c.yaml")]) == 0
    return folder / "version_0"


def test_a_clients_adapter_as_its_card_says(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--client", "noisy", "--to", str(tmp_path / "own")]) == 0
    parts = sections(tmp_path / "own")
    assert yaml.safe_load(parts["front"]) == {
        "library_name": "peft", "tags": ["federated-learning", "lit_fed", "local", "lora"],
    }  # fmt: skip
    facts = parts["Local: the adapter for client noisy"]
    summary = json.loads((run / "summary.json").read_text())
    assert f"{summary['trainable_parameters']:,} of {summary['total_parameters']:,}" in facts
    assert "| data | Digits |" in facts
    assert "| classes | 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 |" in facts
    initial = json.loads((run / "initial.json").read_text())["clients"]["noisy"]["accuracy"]
    last = [line.split(",") for line in (run / "clients.csv").read_text().splitlines()]
    own = dict(zip(last[0], next(row for row in last if "noisy" in row), strict=True))
    assert f"| accuracy, own test data | {initial:.3f} | {float(own['accuracy']):.3f} |" in parts["Scores"]
    assert f"lit-fed fit --config {run / 'config.yaml'}" in parts["How it was made"]
    assert summary["state_digest"] in parts["How it was made"]
    # What the card says loads the same model as the merged export, which its own card loads.
    adapted = run_python(parts["Use"])["model"].eval()
    assert main(["export", str(run), "--client", "noisy", "--to", str(tmp_path / "whole"), "--merge"]) == 0
    whole = run_python(sections(tmp_path / "whole")["Use"])["model"].eval()
    pixels = torch.linspace(-1, 1, 32 * 32).view(1, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(whole(pixels).logits, adapted(pixels).logits, rtol=0, atol=1e-4)
    assert whole.config.id2label == {i: str(i) for i in range(10)}


def test_everybodys_adapter(run: Path, tmp_path: Path) -> None:
    export_adapter(run, tmp_path / "to")
    parts = sections(tmp_path / "to")
    assert "Local: the adapter for new clients" in parts
    metrics = json.loads((run / "summary.json").read_text())["metrics"]
    for name in ("all domains", "plain", "noisy"):
        value = metrics["global/accuracy" + ("" if name == "all domains" else f"/{name}")]
        assert re.search(rf"\| accuracy, {name} \| 0\.\d{{3}} \| {value:.3f} \|", parts["Scores"])


@pytest.fixture
def gated(tmp_path: Path, one_thread: None) -> Path:
    algorithm = FedFMSL(1, "all", start=1, gate_width=4, local_steps=1)
    return fit(algorithm, tiny_vit(), pictures(), tmp_path / "runs", rounds=2).path


def test_a_mixture_is_one_folder_with_two_adapters_and_a_gate(gated: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    export_adapter(gated, tmp_path / "to", "01")
    use = sections(tmp_path / "to")["Use"]
    assert "`global/` and `local/`" in use
    with safe_open(tmp_path / "to" / "global" / "other_parameters.safetensors", framework="pt") as file:
        assert {name.partition(".")[0] for name in file.keys()} == {"gate"}  # noqa: SIM118
    assert "`Mixture` makes one prediction of all" in use
    assert f"module = load_export({str(tmp_path / 'to')!r}, module)" in use
    assert "lit-fed predict" not in use  # its module is a script's
    with pytest.raises(
        ConfigError, match=r"the slots \['global', 'local'\], which are weighed .* no one set of weights predicts so"
    ):
        export_merged(tiny_vit(), gated, tmp_path / "merged", "01")


def test_a_base_that_is_nowhere_and_a_module_without_one(tmp_path: Path, one_thread: None) -> None:
    drawn = fit(Local(), tiny_vit(), pictures(), tmp_path / "runs", rounds=1).path
    export_adapter(drawn, tmp_path / "drawn")
    assert "drawn at random" in sections(tmp_path / "drawn")["Use"]
    export_merged(tiny_vit(), drawn, tmp_path / "whole")
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "whole").config.num_labels == 2
    assert "From a script." in sections(tmp_path / "whole")["How it was made"]
    plain = fit(FedAvg(), Net(), points(), tmp_path / "runs", rounds=1).path
    export_adapter(plain, tmp_path / "plain")
    assert "Tensors by canonical name" in sections(tmp_path / "plain")["Use"]
