"""Precision, failure, settings, and what a run leaves in its folder."""

import json
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.precision import MixedPrecision

from lit_fed.algorithms import FedAvg, Local
from lit_fed.callbacks import Callback, EarlyStopping
from lit_fed.core.errors import ClientFailure, ConfigError, StateMismatchError
from lit_fed.engine import Federation
from lit_fed.engine.local_loop import LocalLoop, LoopSettings
from lit_fed.engine.run_folder import RunFolder, read_csv
from tests.engine.tiny import Net, fit, pictures, points, tiny_vit

pytestmark = pytest.mark.usefixtures("one_thread")


class SeesDtype(Net):
    """Remembers the dtype its matrix products came in."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.seen = self.body(batch[0]).dtype
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen_in_evaluation = self.body(batch[0]).dtype
        super().validation_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("precision", "inside", "frozen"),
    [
        ("32-true", torch.float32, torch.float32),
        ("bf16-mixed", torch.bfloat16, torch.float32),
        ("bf16-true", torch.bfloat16, torch.bfloat16),
    ],
)
def test_steps_run_in_the_chosen_precision(tmp_path, precision, inside, frozen):
    module = SeesDtype()
    result = fit(FedAvg(), module, points(), tmp_path, precision=precision)
    assert module.seen == module.seen_in_evaluation == inside
    assert module.body.weight.dtype == frozen
    assert module.head.weight.dtype == torch.float32  # what is trained stays exact
    assert all(tensor.dtype == torch.float32 for tensor in result.adapter.values())


def test_every_client_gets_a_fresh_scaler():
    fabric = Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu"))
    loop = LocalLoop(fabric, Net(), LoopSettings())
    data = points(2)
    data.setup_clients()
    first, second = data.clients
    scalers = []
    for client in (first, second):
        loader = data.train_loader(client.id, torch.Generator().manual_seed(0))
        loop.run(loader, client, 0, steps=1, epochs=None)
        scalers.append(fabric._precision.scaler)
        assert fabric._precision.scaler.get_scale() == 65536.0  # the start value, with one good step behind it
        fabric._precision.scaler.update(2.0)  # as after many overflows
    assert scalers[0] is not scalers[1]


class Closes(Net):
    """Its optimizer calls the closure, as in a Trainer; of one batch it makes no loss."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
        return super().training_step(batch, batch_idx) if batch_idx != 1 else None

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
        optimizer.step(closure=optimizer_closure)


class Skips(Closes):
    """The same without a hook of its own."""

    optimizer_step = Net.optimizer_step


def test_an_optimizer_may_call_the_closure_where_losses_are_scaled():
    data = points(2)
    data.setup_clients()
    heads = []
    for module in (Closes(), Skips()):
        fabric = Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu"))
        loader = data.train_loader("00", torch.Generator().manual_seed(0))
        LocalLoop(fabric, module, LoopSettings()).run(loader, data.clients[0], 0, steps=3, epochs=None)
        heads.append(module.head.weight)
    assert torch.equal(*heads)
    assert not torch.equal(heads[0], Net().head.weight)


class Breaks(Net):
    """One client's training goes wrong."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.trainer.client.id == "01":
            if self.how == "raise":
                raise OSError("the disk is gone")
            loss = loss * float("nan")
        return loss


@pytest.mark.parametrize(("how", "said"), [("raise", "OSError: the disk is gone"), ("nan", "loss became nan")])
def test_a_failing_client_ends_the_run_by_name(tmp_path, how, said):
    with pytest.raises(ClientFailure, match=rf"Client '01' failed in round 0 \(local\): .*{said}") as error:
        fit(FedAvg(), Breaks(how), points(), tmp_path)
    assert (error.value.client, error.value.round, error.value.stage) == ("01", 0, "local")


@pytest.mark.parametrize("how", ["raise", "nan"])
def test_a_failing_client_is_dropped_counted_and_told(tmp_path, how):
    result = fit(FedAvg(), Breaks(how), points(), tmp_path, failure="drop")
    assert [row["num_failures"] for row in result.history] == [1, 1]
    assert [row["num_updates"] for row in result.history] == [2, 2]
    rows = read_csv(result.path / "clients.csv", text_columns=("client",))
    assert {row["client"] for row in rows if "failure" in row} == {"01"}
    assert all(torch.isfinite(tensor).all() for tensor in result.adapter.values())


def test_too_few_updates_end_the_run(tmp_path):
    with pytest.raises(ClientFailure, match=r"2 updates are left, fewer than `federation\.min_updates` = 3"):
        fit(FedAvg(), Breaks("nan"), points(), tmp_path, failure="drop", min_updates=3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cohort": 4}, r"`federation.cohort` to be from 1 to 3 .*got 4"),
        ({"cohort": 0.0}, r"fraction in \(0, 1\], but got 0.0"),
        ({"sampling": "per_domain"}, r"needs clients that have one domain each, but these have none: \['00'"),
        ({"rounds": 0}, r"`federation.rounds` to be >= 1, but got 0"),
        ({"threads": 0}, r"`federation.threads` to be >= 1 or null, but got 0"),
        ({"min_updates": 3, "cohort": 2}, r"`federation.min_updates` to be from 1 to the cohort's 2, but got 3"),
        ({"gradient_clip_val": -1.0}, r"`federation.gradient_clip_val` to be > 0"),
        ({"strategy": "fsdp"}, r"`federation.parallel` to be 'within'"),
        ({"callbacks": [object()]}, r"`federation.callbacks` to hold"),
    ],
)
def test_bad_settings_are_named(tmp_path, settings, said):
    with pytest.raises(ConfigError, match=said):
        fit(FedAvg(), Net(), points(), tmp_path, **settings)
    assert not list(tmp_path.iterdir())  # nothing was begun


def test_all_problems_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        fit(FedAvg(local_steps=0), Net(), points(), tmp_path, rounds=0, checkpoint_every=0)
    assert len(error.value.problems) == 3


def test_labels_out_of_range_are_found_before_work_starts(tmp_path):
    from lit_fed.modules.image_classifier import ImageClassifier
    from tests.engine.tiny import Pictures

    data = pictures()
    table: Any = data.source.table
    assert isinstance(data.source, Pictures)
    table.column("labels")[3] = 2
    module = tiny_vit()
    assert isinstance(module, ImageClassifier)
    with pytest.raises(ConfigError, match=r"`labels` to be from 0 to 1, but got 2"):
        fit(FedAvg(), module, data, tmp_path)


def test_a_module_with_nothing_to_train_is_refused(tmp_path):
    module = Net()
    module.requires_grad_(False)
    with pytest.raises(ConfigError, match="add_lora"):
        fit(FedAvg(), module, points(), tmp_path)


def test_an_objective_needs_a_module_that_offers_it(tmp_path):
    class NeedsLogits(FedAvg):
        needs = frozenset({"logits"})

    with pytest.raises(
        ConfigError, match=r"NeedsLogits` needs a module that offers `logits\(batch\)`, and Net does not"
    ):
        fit(NeedsLogits(), Net(), points(), tmp_path)


def test_the_run_folder(tmp_path):
    result = fit(Local(), tiny_vit(), pictures(), tmp_path, rounds=3, evaluate_every=2)
    assert {path.name for path in result.path.iterdir()} == {
        "config.yaml", "metrics.csv", "clients.csv", "clients.json", "initial.json", "summary.json", "checkpoints",
        "private", "adapters",
    }  # fmt: skip
    compared = json.loads((result.path / "clients.json").read_text())
    assert {client: own["own"]["accuracy"] for client, own in compared.items()} == {
        client: row["after"] for client, row in result.clients.items()
    }
    summary = json.loads((result.path / "summary.json").read_text())
    assert summary == result.summary
    assert summary["num_clients"] == 3
    assert summary["traffic"]["up_bytes"] == summary["traffic"]["down_bytes"] == 0  # Local sends nothing
    assert {"initial/accuracy", "global/accuracy", "global/accuracy/all", "personal/accuracy_worst"} <= set(
        summary["metrics"]
    )
    metrics = read_csv(result.path / "metrics.csv")
    assert [row["round"] for row in metrics] == [0, 1, 2]
    assert ["global/accuracy" in row for row in metrics] == [False, True, True]  # every second, and the last
    clients = read_csv(result.path / "clients.csv", text_columns=("client",))
    last = {row["client"]: row for row in clients if row["round"] == 2}
    for client, row in last.items():
        assert row["accuracy"] == result.clients[client]["after"]
        assert row["loss"] != row["test_loss"]  # of its training, and of its evaluation
    trained = sum(row["loss"] * row["examples"] for row in last.values()) / sum(
        row["examples"] for row in last.values()
    )
    assert trained == pytest.approx(metrics[2]["train/loss"], rel=1e-12)
    assert {path.name for path in (result.path / "adapters" / "clients").iterdir()} == {"00", "01", "02"}
    assert (result.path / "adapters" / "global" / "adapter_config.json").is_file()
    assert [path.name for path in sorted((result.path / "checkpoints").iterdir())] == [
        "round_000002.safetensors", "round_000003.safetensors",
    ]  # fmt: skip


def test_a_stored_run_is_scored_as_it_was(tmp_path):
    result = fit(Local(), tiny_vit(), pictures(), tmp_path)
    federation = Federation(Local(), accelerator="cpu", progress=False)
    before = sorted(path.stat().st_mtime_ns for path in result.path.rglob("*"))
    found = federation.test(tiny_vit(), pictures(), result.path)
    assert found == {k: v for k, v in result.metrics.items() if not k.startswith("initial/")}
    validated = federation.validate(tiny_vit(), pictures(), result.path)
    assert "personal/accuracy_mean" in validated
    own = federation.predict(tiny_vit(), pictures(), result.path, client="01")
    anyone = federation.predict(tiny_vit(), pictures(), result.path)
    assert sum(len(batch["labels"]) for batch in own) == 24
    assert not torch.equal(own[0]["probs"], anyone[0]["probs"])
    assert sorted(path.stat().st_mtime_ns for path in result.path.rglob("*")) == before
    with pytest.raises(ConfigError, match="`client` to be one of"):
        federation.predict(tiny_vit(), pictures(), result.path, client="nobody")


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    result = fit(FedAvg(local_steps=1), tiny_vit(), pictures(), tmp_path)
    before = {path: path.read_bytes() for path in result.path.rglob("*") if path.is_file()}
    with pytest.raises(StateMismatchError, match=r"budget.steps: 1 there, 2 here"):
        fit(FedAvg(local_steps=2), tiny_vit(), pictures(), tmp_path, rounds=3, ckpt_path="last")
    with pytest.raises(StateMismatchError, match=r"seed_everything: 0 there, 1 here"):
        fit(FedAvg(local_steps=1), tiny_vit(), pictures(), tmp_path, rounds=3, ckpt_path="last", seed=1)
    assert {path: path.read_bytes() for path in result.path.rglob("*") if path.is_file()} == before  # nothing is lost


def test_a_truncated_checkpoint_is_refused_and_the_one_before_it_works(tmp_path):
    whole = fit(FedAvg(), tiny_vit(), pictures(), tmp_path / "whole", rounds=3)
    folder = fit(FedAvg(), tiny_vit(), pictures(), tmp_path / "parts", rounds=2).path
    last = folder / "checkpoints" / "round_000002.safetensors"
    last.write_bytes(last.read_bytes()[:200])
    with pytest.raises(StateMismatchError, match=r"round_000001\.safetensors"):
        fit(FedAvg(), tiny_vit(), pictures(), tmp_path / "parts", rounds=3, ckpt_path="last")
    older = str(folder / "checkpoints" / "round_000001.safetensors")
    resumed = fit(FedAvg(), tiny_vit(), pictures(), tmp_path / "parts", rounds=3, ckpt_path=older)
    assert resumed.summary["state_digest"] == whole.summary["state_digest"]


def test_nothing_to_continue_is_said(tmp_path, capsys):
    result = fit(FedAvg(), Net(), points(), tmp_path, ckpt_path="last")
    assert "starting from the beginning" in capsys.readouterr().out
    assert result.summary["rounds"] == 2
    with pytest.raises(ConfigError, match="`ckpt_path` to be 'last'"):
        fit(FedAvg(), Net(), points(), tmp_path, ckpt_path=str(tmp_path / "nowhere"))


def test_runs_get_folders_of_their_own(tmp_path):
    assert [RunFolder.new(tmp_path).path.name for _ in range(3)] == ["version_0", "version_1", "version_2"]


def test_early_stopping_survives_a_resume(tmp_path):
    stopping = {"callbacks": [EarlyStopping("global/accuracy", patience=2, min_delta=1.0)]}
    whole = fit(FedAvg(), Net(), points(), tmp_path / "whole", rounds=9, **stopping)
    assert whole.summary["rounds"] == 2  # the first evaluation is before round 0, and no gain exceeds 1
    fit(FedAvg(), Net(), points(), tmp_path / "parts", rounds=1, callbacks=[EarlyStopping(patience=2, min_delta=1.0)])
    again = [EarlyStopping("global/accuracy", patience=2, min_delta=1.0)]
    parts = fit(FedAvg(), Net(), points(), tmp_path / "parts", rounds=9, callbacks=again, ckpt_path="last")
    assert parts.summary["rounds"] == 2
    assert parts.summary["state_digest"] == whole.summary["state_digest"]


def test_early_stopping_names_the_metrics_there_are(tmp_path):
    with pytest.raises(ConfigError, match=r"`EarlyStopping.monitor` to be one of .*global/accuracy"):
        fit(FedAvg(), Net(), points(), tmp_path, callbacks=[EarlyStopping("val_acc")])


def test_a_misspelt_hook_is_an_error():
    with pytest.raises(TypeError, match="on_round_ended"):
        type("Misspelt", (Callback,), {"on_round_ended": lambda self: None})


def test_lightning_loggers_get_every_round(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path / "logs", name="", version="")
    fit(FedAvg(), Net(), points(), tmp_path / "runs", logger=logger)
    rows = read_csv(tmp_path / "logs" / "metrics.csv")
    assert [row["step"] for row in rows] == [0, 1]
    assert {"train/loss", "global/accuracy", "up_bytes"} <= rows[0].keys()


def test_a_dry_run_counts_and_touches_nothing(tmp_path, capsys):
    result = fit(FedAvg(), tiny_vit(), pictures(), tmp_path, dry_run=True, progress=True)
    # Rank 2 on two 8 x 8 projections in each of 3 blocks, and a head of 8 x 2 + 2
    assert result.summary["trainable_parameters"] == 3 * 2 * 2 * (2 * 8) + 18
    assert result.clients["00"]["up_bytes"] == 4 * result.summary["trainable_parameters"]
    assert result.clients["00"]["down_bytes"] == result.clients["00"]["up_bytes"]
    assert "tuned" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


class Batchnorm(Net):
    """A trainable layer with running statistics, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen_norm, self.norm = torch.nn.BatchNorm1d(5), torch.nn.BatchNorm1d(5)
        self.frozen_norm.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.frozen_norm(self.body(x))))


def test_running_statistics_travel_with_what_is_trained_and_else_stay(tmp_path):
    module = Batchnorm()
    result = fit(FedAvg(), module, points(), tmp_path)
    assert any("running_mean" in name for name in result.adapter)
    assert torch.equal(module.frozen_norm.running_mean, torch.zeros(5))
    assert not torch.equal(module.norm.running_mean, torch.zeros(5))


def test_pytorch_lightning_modules_are_refused_by_name(tmp_path):
    class Other:
        pass

    assert not isinstance(Other(), pl.LightningModule)
    with pytest.raises(ConfigError, match=r"lightning\.pytorch"):
        fit(FedAvg(), Other(), points(), tmp_path)


def test_threads_are_those_asked_for_during_a_run_and_as_before_after_it(tmp_path):
    class Counts(Net):
        seen = 0

        def training_step(self, batch, batch_idx):
            type(self).seen = torch.get_num_threads()
            return super().training_step(batch, batch_idx)

    before = torch.get_num_threads()
    fit(FedAvg(), Counts(), points(), tmp_path, threads=before + 1)
    assert (Counts.seen, torch.get_num_threads()) == (before + 1, before)
