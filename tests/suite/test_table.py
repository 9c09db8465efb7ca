"""What is read of runs, and the rows made of it; numbers by hand."""

import pytest

from lit_fed.core.errors import ConfigError
from lit_fed.suite.record import Scores, metric_names, scores_of
from lit_fed.suite.seeds import Spread
from lit_fed.suite.table import choose_metric, tabulate
from tests.suite.runs import record, summary

OWN = {"personal__accuracy_mean": 0.7, "personal__accuracy_std": 0.1, "personal__accuracy_worst": 0.4}


def test_the_mean_counts_every_domain_the_same() -> None:
    written = summary({"a": 0.5, "b": 1.0}, **OWN)
    written["metrics"]["global/accuracy"] = 0.9  # over examples, of which `b` has more
    assert scores_of(written, "accuracy") == Scores(0.75, {"a": 0.5, "b": 1.0}, 0.7, 0.4)
    assert scores_of(written, "personal/accuracy") == Scores(0.7, {}, None, 0.4)


def test_a_single_domain_is_the_mean() -> None:
    assert scores_of(summary({"all": 0.5}), "accuracy") == Scores(0.5, {}, None, None)


def test_names_of_metrics() -> None:
    written = summary({"a": 0.5}, metric="val/acc", global__loss=1.0, global__loss__a=1.0, initial__loss=2.0, **OWN)
    assert metric_names(written) == ["val/acc", "loss", "personal/accuracy"]
    assert scores_of(written, "val/acc").mean == 0.5


@pytest.mark.parametrize(
    ("runs", "asked", "chosen"),
    [
        ([record("A", 0, 0.5, global__loss=1.0)], None, "accuracy"),
        ([record("A", 0, 0.5, metric="loss", global__f1=1.0)], None, "loss"),
        ([record("A", 0, 0.5, global__loss=1.0)], "loss", "loss"),
        ([record("A", 0, 0.5, metric="f1"), record("A", 1, 0.5, metric="f1", global__accuracy=1.0)], None, "f1"),
        ([record("A", 0, 0.5, **OWN)], "personal/accuracy", "personal/accuracy"),
    ],
)
def test_the_metric_is_one_that_all_report(runs: list[object], asked: str | None, chosen: str) -> None:
    assert choose_metric(runs, asked) == chosen


def test_only_personal_metrics() -> None:
    run = record("A", 0, 0.5, **OWN)
    own = {name: value for name, value in run.summary["metrics"].items() if name.startswith("personal/")}
    run.summary["metrics"].clear()
    run.summary["metrics"].update(own)
    assert choose_metric([run], None) == "personal/accuracy"


def test_a_metric_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"Expected `metric` to be one of accuracy, loss, but got 'acc'\."):
        choose_metric([record("A", 0, 0.5, global__loss=1.0)], "acc")
    with pytest.raises(ConfigError, match="none of f1, loss is in all of them"):
        choose_metric([record("A", 0, 0.5, metric="f1"), record("B", 0, 0.5, metric="loss")], None)


def test_rows() -> None:
    runs = [
        record("Ours", 1, {"a": 0.5, "b": 0.75}, rounds=2, up_bytes=8, train_s=2.0),
        record("Ours", 0, {"a": 0.25, "b": 0.5}, rounds=4, up_bytes=8, train_s=4.0),
        record("Theirs", 0, {"a": 0.25, "b": 0.25}),
        record("Theirs", 1, {"a": 0.25, "b": 0.25}),
    ]
    (table,) = tabulate(runs, "accuracy", "Theirs")
    ours, theirs = table.rows
    assert (table.domains, table.seeds, table.baseline) == (("a", "b"), (0, 1), "Theirs")
    assert list(ours.means.items()) == [(0, 0.375), (1, 0.625)]
    assert ours.mean == Spread(0.5, pytest.approx(0.125 * 2**0.5))
    assert ours.domains == {
        "a": Spread(0.375, pytest.approx(0.125 * 2**0.5)),
        "b": Spread(0.625, pytest.approx(0.125 * 2**0.5)),
    }
    assert (ours.up_bytes, ours.down_bytes, ours.train_s) == (3.0, 6.0, 3.0)  # (8/2 + 8/4) / 2
    assert ours.test is not None
    assert ours.test.difference == 0.25
    assert theirs.test is None
    assert ours.personal is ours.worst is None


def test_settings_are_tables_of_their_own_and_need_not_have_the_baseline() -> None:
    runs = [record("A", 0, 0.5, "x"), record("B", 0, 0.25, "x"), record("B", 0, 0.5, "y")]
    first, second = tabulate(runs, "accuracy", "A")
    assert (first.setting, [row.experiment for row in first.rows], first.baseline) == ("x", ["A", "B"], "A")
    assert (second.setting, [row.experiment for row in second.rows], second.baseline) == ("y", ["B"], None)
    assert second.rows[0].test is None


def test_a_run_that_stopped_early_has_bytes_of_its_own_rounds() -> None:
    (table,) = tabulate([record("A", 0, 0.5, rounds=0, up_bytes=0)], "accuracy", None)
    assert table.rows[0].up_bytes == 0.0
