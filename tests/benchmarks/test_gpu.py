"""The benchmark of a GPU, in small on a CPU: what it measures, writes and prints."""

import json
import statistics
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.machine import step_flops
from benchmarks.workload import make_data, make_module

pytestmark = pytest.mark.usefixtures("one_thread")


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["gpu", *words])
    with pytest.raises(SystemExit) as end:
        gpu.main()
    return end.value.code


def test_in_small_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gpu.json"
    words = ["--json", str(file), "--accelerator", "cpu", "--tiny", "--precision", "bf16-true", "--repeats", "2"]
    assert call(monkeypatch, *words) == 0
    found = json.loads(file.read_text())
    assert found["device"] == "cpu"
    assert found["torch"] == torch.__version__
    assert found["settings"]["pace"]["image"] == 32
    (pace,) = found["pace"]
    assert pace["round_s"] == statistics.median(pace["rounds_s"])
    assert len(pace["rounds_s"]) == 2
    done = step_flops(gpu.TINY.pace, "lean") * pace["steps_per_s"]
    assert pace["of_ceiling"] == pytest.approx(done / found["ceiling_flops"])
    assert pace["clients_per_s"] * pace["steps"] == pytest.approx(pace["steps_per_s"])
    assert [row["batch_clients"] for row in found["together"]] == [2, 4]
    for row in found["together"]:
        assert row["ratio"] == statistics.median(row["ratios"])
        assert len(row["ratios"]) == 2
        assert row["gap"] <= 0.5
        assert row["said"] == []
        assert row["alone_peak_bytes"] is row["together_peak_bytes"] is pace["peak_bytes"] is None
    printed = capsys.readouterr().out
    assert printed.startswith("cpu: ceiling")
    assert printed.count("memory not known") == 1 + 2 * 2


def test_without_a_gpu_it_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert call(monkeypatch, "--json", str(tmp_path / "gpu.json")) == 2
    said = capsys.readouterr().err
    assert "needs a GPU" in said
    assert "--accelerator cpu --tiny" in said
    assert list(tmp_path.iterdir()) == []


def test_the_model_is_vit_b_16() -> None:
    with torch.device("meta"):
        module = make_module(gpu.FULL.pace)
        module.configure_model()
    shape = module.backbone.config
    assert (shape.hidden_size, shape.num_hidden_layers, shape.num_attention_heads) == (768, 12, 12)
    assert (shape.intermediate_size, shape.image_size, shape.patch_size, shape.num_channels) == (3072, 224, 16, 3)
    named = module.named_parameters()
    frozen = sum(p.numel() for name, p in named if not p.requires_grad and "classifier" not in name)
    assert frozen == 85_798_656  # 12 blocks of 7,087,872, embeddings 742,656, the last norm 1,536


def test_pictures_have_the_shape_that_is_asked_for() -> None:
    batch = next(iter(make_data(gpu.TINY.pace).source.train_dataloader()))
    assert batch["pixel_values"].shape == (4, 3, 32, 32)
