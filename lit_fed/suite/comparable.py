"""Whether numbers of several runs may stand in one table."""

from collections.abc import Iterable, Mapping
from typing import Any

from lit_fed.core.difference import differences, listed
from lit_fed.core.errors import ConfigError
from lit_fed.suite.record import Record

__all__ = ["check_comparable", "data_differences", "without"]

_BATCHES = ("data.batch_size", "data.eval_batch_size", "data.max_encoded_bytes")  # who holds what is the same
_WHERE = (  # what the machine is told, not the method
    "federation.run_dir", "federation.progress", "federation.logger", "federation.accelerator", "federation.devices",
    "federation.num_nodes", "federation.strategy", "federation.checkpoint_every", "federation.pictures",
)  # fmt: skip


def check_comparable(records: Iterable[Record]) -> None:
    """Raise `ConfigError` unless all runs have the same data, and those of one experiment the same settings.

    Data may be drawn anew with the seed, if they are the same for all runs of one seed.
    """
    first: Record | None = None
    by_seed: dict[int, Record] = {}
    by_experiment: dict[str, Record] = {}
    seen: dict[tuple[str, int], Record] = {}
    for record in records:
        first = first or record
        twin = seen.setdefault((record.experiment, record.seed), record)
        if twin is not record:
            raise ConfigError(
                f"{twin.path} and {record.path} are both {record.experiment} with seed {record.seed}. Give runs of"
                " different experiments different names (`--name`, or `names` in Python)."
            )
        _check_data(first, record, seeds=False)
        _check_data(by_seed.setdefault(record.seed, record), record, seeds=True)
        _check_settings(by_experiment.setdefault(record.experiment, record), record)


def data_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """In which settings two configurations differ that say who holds what."""
    return differences(*({"data": without(config, _BATCHES).get("data") or {}} for config in (there, here)))


def without(config: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """A copy without some settings, each named as ``"group.key"`` or ``"key"``."""
    gone = set(keys)
    return {
        name: {k: v for k, v in value.items() if f"{name}.{k}" not in gone} if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name not in gone
    }


def _check_data(one: Record, other: Record, seeds: bool) -> None:
    there, here = (r.config if seeds else _without_seeds(r.config) for r in (one, other))
    known = there.get("data") and here.get("data")  # a run made from Python does not say what its data were
    lines = data_differences(there, here) if known else []
    clients = [record.summary["num_clients"] for record in (one, other)]
    if clients[0] != clients[1]:
        lines.append(f"num_clients: {clients[0]} there, {clients[1]} here")
    if lines:
        raise ConfigError(
            f"The runs were made on different data: {one.path} (there) and {other.path} (here) differ in"
            f"{listed(lines)}\nCompare runs on the same data only."
        )


def _check_settings(one: Record, other: Record) -> None:
    ignored = (*_WHERE, "seed_everything", "data")
    there, here = (_without_seeds(without(r.config, ignored)) for r in (one, other))
    there["data"], here["data"] = (_without_seeds(r.config.get("data") or {}) for r in (one, other))
    if lines := differences(there, here):
        raise ConfigError(
            f"The runs of {one.experiment} were made with different settings: {one.path} (there) and {other.path}"
            f" (here) differ in{listed(lines)}\nGive them different names (`--name`, or `names` in Python)."
        )


def _without_seeds(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_seeds(v) for k, v in value.items() if k != "seed"}
    return value
