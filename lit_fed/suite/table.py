"""The numbers of a comparison: a table for each setting, a row for each experiment."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lit_fed.core.errors import ConfigError
from lit_fed.metrics.names import higher_is_better, primary
from lit_fed.suite.record import Record, Scores, metric_names, scores_of
from lit_fed.suite.seeds import PairedTest, Spread, paired_test

__all__ = ["Row", "SettingTable", "choose_metric", "tabulate"]


@dataclass(frozen=True)
class Row:
    """One experiment in one setting, over its seeds."""

    experiment: str
    means: dict[int, float]
    """Seed -> the mean over domains."""
    mean: Spread
    domains: dict[str, Spread]
    personal: Spread | None
    worst: Spread | None
    up_bytes: float
    """Of all clients together, a round; mean over seeds."""
    down_bytes: float
    train_s: float
    """Seconds of training of the whole run, evaluation apart; mean over seeds."""
    test: PairedTest | None
    """Against the baseline; `None` for the baseline itself, and where there is none."""


@dataclass(frozen=True)
class SettingTable:
    """All experiments in one setting."""

    setting: str
    metric: str
    baseline: str | None
    """`None` if there is none in this setting."""
    domains: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def higher_is_better(self) -> bool:
        """Of the metric."""
        return higher_is_better(self.metric)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of any row."""
        return tuple(sorted({seed for row in self.rows for seed in row.means}))


def choose_metric(runs: Sequence[Record], metric: str | None) -> str:
    """The metric asked for, or the primary one.

    Raises:
        ConfigError: If not all runs report it.
    """
    reported = [metric_names(run.summary) for run in runs]
    common = [name for name in reported[0] if all(name in names for names in reported)]
    if not common:
        every = sorted({name for names in reported for name in names})
        raise ConfigError(
            f"Expected runs that report the same metric, but none of {', '.join(every)} is in all of them."
        )
    if metric is None:
        name = primary(runs[0].summary["metrics"])
        return next((known for known in (name, f"personal/{name}") if known in common), common[0])
    if metric not in common:
        raise ConfigError(f"Expected `metric` to be one of {', '.join(common)}, but got {metric!r}.")
    return metric


def tabulate(records: Sequence[Record], metric: str, baseline: str | None) -> list[SettingTable]:
    """A table for each setting; settings, experiments and domains in the order in which they first come.

    Args:
        records: At least one; of one setting, experiment and seed at most one.
        metric: That all of them report.
        baseline: An experiment that the others are tested against.
    """
    settings = dict.fromkeys(record.setting for record in records)
    return [
        _of_setting(setting, [r for r in records if r.setting == setting], metric, baseline) for setting in settings
    ]


def _of_setting(setting: str, records: Sequence[Record], metric: str, baseline: str | None) -> SettingTable:
    by_experiment: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.seed):
        by_experiment.setdefault(record.experiment, []).append(record)
    names = list(dict.fromkeys(record.experiment for record in records))
    scores = {name: {r.seed: scores_of(r.summary, metric) for r in by_experiment[name]} for name in names}
    domains = tuple(dict.fromkeys(d for name in names for found in scores[name].values() for d in found.domains))
    known = baseline if baseline in scores else None
    against = {seed: found.mean for seed, found in scores[known].items()} if known else None
    rows = [_row(n, by_experiment[n], scores[n], domains, None if n == known else against) for n in names]
    return SettingTable(setting, metric, known, domains, tuple(rows))


def _row(
    experiment: str,
    runs: Sequence[Record],
    scores: dict[int, Scores],
    domains: Iterable[str],
    baseline: dict[int, float] | None,
) -> Row:
    means = {seed: found.mean for seed, found in scores.items()}
    per_round = {
        name: [run.summary["traffic"][name] / max(1, run.summary["rounds"]) for run in runs]
        for name in ("up_bytes", "down_bytes")
    }
    return Row(
        experiment,
        means,
        Spread.of(means.values()),
        {d: Spread.of(own) for d in domains if (own := [s.domains[d] for s in scores.values() if d in s.domains])},
        _spread_of_known(found.personal for found in scores.values()),
        _spread_of_known(found.worst for found in scores.values()),
        Spread.of(per_round["up_bytes"]).mean,
        Spread.of(per_round["down_bytes"]).mean,
        Spread.of(run.summary["seconds"]["train"] for run in runs).mean,
        paired_test(means, baseline) if baseline is not None else None,
    )


def _spread_of_known(values: Iterable[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return Spread.of(known) if known else None
