import pytest

from lit_fed.metrics import higher_is_better, primary


def test_direction() -> None:
    assert all(higher_is_better(name) for name in ("accuracy", "val_f1", "auroc"))
    assert not any(higher_is_better(name) for name in ("loss", "val_loss", "personal/perplexity", "top1_error", "mae"))


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["global/loss", "global/accuracy", "global/accuracy/a"], "accuracy"),
        (["global/val_loss", "global/val_accuracy"], "val_loss"),
        (["personal/f1_mean", "personal/f1_std"], "f1"),
        (["global/loss", "personal/accuracy_mean"], "loss"),
        ([], "loss"),
    ],
)
def test_primary(names: list[str], chosen: str) -> None:
    assert primary(names) == chosen
