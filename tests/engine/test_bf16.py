"""A run with lean kernels: in float32 where PyTorch's ends, in bfloat16 near it; frozen weights untouched."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lit_fed.algorithms import FedAvg, FLoRA
from tests.engine.tiny import fit, pictures, tiny_vit

pytestmark = pytest.mark.usefixtures("one_thread")


def moved(result: Any, other: Any, start: Any) -> float:
    """How far two runs are apart, relative to how far one has come."""
    apart = sum(float((result.adapter[n] - t).square().sum()) for n, t in other.adapter.items())
    come = sum(float((start.adapter[n] - t).square().sum()) for n, t in other.adapter.items())
    return float((apart / come) ** 0.5)


def test_a_lean_run_in_float32_ends_where_pytorch_s_ends(tmp_path):
    start = fit(FedAvg(), tiny_vit(), pictures(), tmp_path / "start", rounds=1)
    exact = fit(FedAvg(), tiny_vit(), pictures(), tmp_path / "torch", rounds=3, kernels="torch")
    lean = fit(FedAvg(), tiny_vit(), pictures(), tmp_path / "lean", rounds=3)
    assert 0 < moved(lean, exact, start) < 1e-4  # another path, the same steps


@pytest.mark.parametrize("algorithm", [FedAvg, FLoRA])
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_it_ends_where_float32_ends(tmp_path, algorithm, precision):
    start = fit(algorithm(), tiny_vit(), pictures(), tmp_path / "start", rounds=1)
    exact = fit(algorithm(), tiny_vit(), pictures(), tmp_path / "exact", rounds=3)
    lean = fit(algorithm(), tiny_vit(), pictures(), tmp_path / "lean", rounds=3, precision=precision)
    assert 0 < moved(lean, exact, start) < 0.15
    assert lean.metrics["global/loss"] == pytest.approx(exact.metrics["global/loss"], abs=0.02)


class Looks(pl.Callback):
    """Notes the types of gradients and of what the optimizer keeps."""

    def __init__(self) -> None:
        self.seen: set[torch.dtype] = set()

    def on_before_optimizer_step(self, trainer: Any, module: pl.LightningModule, optimizer: Any) -> None:
        trained = [p for p in module.parameters() if p.requires_grad]
        assert all(p.grad is not None for p in trained)
        self.seen |= {p.dtype for p in trained} | {p.grad.dtype for p in trained if p.grad is not None}

    def on_train_end(self, trainer: Any, module: pl.LightningModule) -> None:
        kept = [t for state in trainer.optimizers[0].state.values() for t in state.values()]
        assert kept
        self.seen |= {t.dtype for t in kept}


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01)


@pytest.mark.parametrize("algorithm", [FedAvg, FLoRA])
def test_only_products_are_in_bfloat16(tmp_path, algorithm):
    """What is trained, its gradients and AdamW's moments are float32; frozen weights end as they began."""
    looks, module = Looks(), tiny_vit(optimizer=adamw)
    result = fit(algorithm(), module, pictures(), tmp_path, precision="bf16-mixed", callbacks=[looks])
    assert looks.seen == {torch.float32}
    fresh = tiny_vit(optimizer=adamw)
    fit(algorithm(), fresh, pictures(), tmp_path / "fresh", rounds=1)  # builds it from the same seed
    frozen = [name for name, p in fresh.named_parameters() if "lora_" not in name and "modules_to_save" not in name]
    before, after = fresh.state_dict(), module.state_dict()
    assert frozen
    targets = ("q_proj", "v_proj") if algorithm is FLoRA else ()  # what it adds its product to
    untouched = [name for name in frozen if not any(target in name for target in targets)]
    assert all(torch.equal(before[name], after[name]) for name in untouched)
    assert {after[name].dtype for name in frozen} == {torch.float32}
    assert all(tensor.dtype == torch.float32 for tensor in result.adapter.values())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_resumed_and_with_blocks_on_disk_it_is_the_same_to_the_bit(tmp_path, precision):
    whole = fit(FedAvg(), tiny_vit(), pictures(), tmp_path / "whole", rounds=3, precision=precision)
    disk = fit(
        FedAvg(), tiny_vit(), pictures(), tmp_path / "disk", rounds=3, precision=precision, offload_blocks=True
    )  # fmt: skip
    fit(FedAvg(), tiny_vit(), pictures(), tmp_path / "parts", rounds=1, precision=precision)
    resumed = fit(
        FedAvg(), tiny_vit(), pictures(), tmp_path / "parts", rounds=3, precision=precision, ckpt_path="last"
    )  # fmt: skip
    assert len({run.summary["state_digest"] for run in (whole, disk, resumed)}) == 1
