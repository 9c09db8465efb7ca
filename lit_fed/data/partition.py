"""From a partitioner of flwr-datasets to who holds which example."""

import copy
import io
import warnings
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from lit_fed.core.errors import ConfigError
from lit_fed.core.seeding import generator
from lit_fed.data.columns import Column, Columns

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

__all__ = ["Partition", "partition", "partition_by"]


@dataclass(frozen=True)
class Partition:
    """Who holds which example of the training set."""

    rows: dict[str, np.ndarray]
    """Client id, sorted, to its rows in increasing order, int64. Disjoint."""
    natural: str | None = None
    """The column that says whose an example is, where a column does."""
    owners: dict[str, str] = field(default_factory=dict)
    """The name in that column to the client that holds its examples."""


def partition_by(column: Column, name: str) -> Partition:
    """One client for each value of a column, called by its name; `name` is the column's."""
    names = column.as_names
    rows = {names[code]: np.flatnonzero(column.values == code) for code in np.unique(column.values).tolist()}
    return Partition(dict(sorted(rows.items())), name, {client: client for client in rows})


def partition(partitioner: "Partitioner", columns: Columns, num_examples: int, seed: int) -> Partition:
    """Has a partitioner divide a light table: an index and the scalar columns of the examples.

    Several partitioners cut the table where it stands (``IidPartitioner`` gives each client a run of rows,
    ``DirichletPartitioner`` a run of the rows of a label), so its rows are put in random order first, unless ids say
    whose they are. That order depends on the partitioner's own seed, on `seed` only if it has none.

    Args:
        partitioner: Fresh; it is copied, not used.
        columns: Of the training set.
        num_examples: Of the training set.
        seed: For partitioners without a seed.

    Raises:
        ConfigError: If the partitioner cannot divide this table, is not fresh, has a seed of `None`, names a column
            that is not there, or gives an example to two clients.
    """
    import datasets

    from lit_fed.data.light_table import LightTable
    from lit_fed.data.within_domains import WithinDomains

    if isinstance(partitioner, WithinDomains):
        return partitioner.divide(columns, num_examples, seed)
    own_seed = getattr(partitioner, "_seed", seed)
    if own_seed is None:
        raise ConfigError(
            "Expected `data.partitioner.seed` to be an int, but got None. Give it a number: without one the clients"
            " hold other data in every run, and in every process."
        )
    if partitioner.is_dataset_assigned():
        raise ConfigError(
            "Expected `data.partitioner` to be fresh, but got one that has partitioned a data set already. Make a new"
            " one."
        )
    by = getattr(partitioner, "_partition_by", None)
    if by is not None:
        columns.need(by, "data.partitioner.partition_by")
    order = np.arange(num_examples)
    if not _is_natural(partitioner):
        order = torch.randperm(num_examples, generator=generator(own_seed, "partition", "order")).numpy()
    table = {"index": np.arange(num_examples)}
    for name in dict.fromkeys([by] if by is not None else columns.cheap()):
        column = columns.get(name, iterate=True)
        assert column is not None
        table[name] = column.values[order]
    worker = copy.deepcopy(partitioner)
    # Somebody's own partitioner may use whatever a data set can do.
    is_flwr = type(worker).__module__.startswith("flwr_datasets.")
    worker.dataset = LightTable(table) if is_flwr else datasets.Dataset.from_dict(table)
    parts = [np.sort(order[places]) for places in _run(worker)]
    natural = by if _is_natural(worker) else None
    rows = dict(sorted(zip(_ids(worker, columns.get(by) if by else None, len(parts)), parts, strict=True)))
    if len(rows) < len(parts):
        raise ConfigError(f"Expected the names in column {by!r} to differ, but got some of them twice.")
    _check_disjoint(rows, num_examples)
    owners = {}
    if natural is not None:
        names = columns.need(natural, "data.partitioner.partition_by").named()
        owners = {name: client for client, own in rows.items() for name in np.unique(names[own].astype(str)).tolist()}
    return Partition(rows, natural, owners)


def _run(partitioner: "Partitioner") -> list[np.ndarray]:
    """The places of each partition in the table. No progress bars are shown, and a warning once."""
    problem = None
    with warnings.catch_warnings(record=True) as caught, redirect_stderr(io.StringIO()):
        warnings.simplefilter("always")
        try:
            loaded = [partitioner.load_partition(i) for i in range(partitioner.num_partitions)]
        except (ValueError, KeyError, IndexError, ZeroDivisionError, TypeError) as error:
            problem = error
    if problem is not None:
        raise ConfigError(
            f"Expected `data.partitioner` to fit the training set, but {type(partitioner).__name__} says: {problem}"
        ) from problem
    own = {str(w.message)[:40]: str(w.message) for w in caught if "flwr_datasets" in w.filename}
    for message in own.values():
        warnings.warn(message, stacklevel=3)
    from lit_fed.data.light_table import Part

    if any(not isinstance(part, Part) and "index" not in part.column_names for part in loaded):
        raise ConfigError(
            "Expected `data.partitioner` to divide the examples, but got one that divides the columns"
            f" ({type(partitioner).__name__})."
        )
    return [part.places if isinstance(part, Part) else np.array(part["index"], dtype=np.int64) for part in loaded]


def _is_natural(partitioner: "Partitioner") -> bool:
    return hasattr(partitioner, "partition_id_to_natural_id") or hasattr(partitioner, "partition_id_to_natural_ids")


def _ids(partitioner: "Partitioner", column: Column | None, num_parts: int) -> list[str]:
    codes = getattr(partitioner, "partition_id_to_natural_id", None)
    if codes and column is not None:
        return [column.as_names[codes[part]] for part in range(num_parts)]
    width = max(2, len(str(num_parts - 1)))
    return [str(part).zfill(width) for part in range(num_parts)]


def _check_disjoint(rows: dict[str, np.ndarray], num_examples: int) -> None:
    times = np.zeros(num_examples, dtype=np.int64)
    for own in rows.values():
        np.add.at(times, own, 1)
    if (times > 1).any():
        sharing = [client for client, own in rows.items() if (times[own] > 1).any()]
        raise ConfigError(
            f"Expected `data.partitioner` to give an example to one client only, but {int((times > 1).sum())}"
            f" examples are given to several (among {sharing[:5]}). Change the partitioner."
        )
