"""Which client holds which examples, to train, to validate and to test, and what is tested globally."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info

from lit_fed.core.errors import ConfigError
from lit_fed.core.seeding import generator
from lit_fed.core.types import Client
from lit_fed.data.columns import Column
from lit_fed.data.held_out import held_out
from lit_fed.data.partition import Partition, partition, partition_by
from lit_fed.data.source import Part, check_labels

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

__all__ = ["EVERYTHING", "Allocation", "Limits", "allocate", "key_of"]

EVERYTHING = "all"
"""The one client, and the one domain, where nothing tells examples apart."""


@dataclass(frozen=True)
class Limits:
    """What a client holds out, and how little it may hold; see `FederatedDataModule`."""

    val_fraction: float = 0.1
    test_fraction: float = 0.2
    min_examples: int = 1
    min_total: Mapping[str, float] = field(default_factory=dict)
    small_clients: str = "refuse"
    label_column: str = "labels"
    domain_column: str = "domain"

    def problems(self) -> list[str]:
        """What is wrong with them, in the words of the configuration."""
        problems = []
        for key in ("val_fraction", "test_fraction"):
            if not 0 <= getattr(self, key) < 1:
                problems.append(f"Expected `data.{key}` to be in [0, 1), but got {getattr(self, key)}.")
        if not problems and self.val_fraction + self.test_fraction >= 1:
            problems.append(
                f"Expected `data.val_fraction` and `data.test_fraction` to leave something to train on, but got"
                f" {self.val_fraction} and {self.test_fraction}."
            )
        if self.min_examples < 1:
            problems.append(f"Expected `data.min_examples` to be >= 1, but got {self.min_examples}.")
        if self.small_clients not in ("refuse", "drop"):
            problems.append(f"Expected `data.small_clients` to be 'refuse' or 'drop', but got {self.small_clients!r}.")
        return problems


@dataclass(frozen=True)
class Allocation:
    """Rows of the source's data sets. All index arrays are int64 in increasing order."""

    clients: tuple[Client, ...]
    rows: Mapping[str, Mapping[str, np.ndarray]]
    """Split (``train``, ``val``, ``test``) to client id to rows."""
    held_in: Mapping[str, str]
    """Split to the source's data set that these are rows of."""
    domains: Mapping[str, np.ndarray]
    """Domain to the rows that are tested globally."""
    tested_in: str
    """The source's data set that these are rows of."""
    labels: Column | None
    """Labels of the training set, if they could be read."""
    left_out: Mapping[str, int]
    """Clients that were too small, and how many examples of the training set went with each."""

    def held(self, split: str, client: str) -> tuple[str, np.ndarray]:
        """The data set that a client's split comes from, and its rows there."""
        if client not in self.rows[split]:
            known = [known.id for known in self.clients]
            raise ConfigError(f"Expected a client among {known[:10]} ({len(known)} in all), but got {client!r}.")
        return self.held_in[split], self.rows[split][client]

    def tested(self, domain: str) -> tuple[str, np.ndarray]:
        """The data set that a domain's test set comes from, and its rows there."""
        if domain not in self.domains:
            raise ConfigError(f"Expected a domain among {list(self.domains)}, but got {domain!r}.")
        return self.tested_in, self.domains[domain]


def key_of(dataset: str, rows: np.ndarray) -> Hashable:
    """Equal for the same rows of the same data set, and else different."""
    return dataset, blake2b(np.ascontiguousarray(rows).tobytes(), digest_size=16).hexdigest()


def allocate(
    source: LightningDataModule, parts: Mapping[str, Part], partitioner: "Partitioner | None", limits: Limits, seed: int
) -> Allocation:
    """Divides what a source holds.

    Raises:
        ConfigError: If it cannot be divided as asked; with all that is wrong.
    """
    train = parts["train"]
    if problems := [p for name, part in parts.items() for p in check_labels(part, limits.label_column, source, name)]:
        raise ConfigError(problems)
    domain = train.columns.get(limits.domain_column)
    divided = _divide(train, partitioner, domain, limits, seed)
    labels = train.columns.get(limits.label_column)
    rows: dict[str, dict[str, np.ndarray]] = {"train": {}, "val": {}, "test": {}}
    held_in = {split: split if _has(parts.get(split), divided) else "train" for split in rows}
    fractions = {
        split: 0.0 if held_in[split] == split else getattr(limits, f"{split}_fraction") for split in ("val", "test")
    }
    for client, own in divided.rows.items():
        strata = labels.values[own] if labels is not None and labels.is_codes else None
        random = generator(seed, "held_out", client)
        kept = held_out(fractions["val"], fractions["test"], random, num_examples=len(own), strata=strata)
        for split, places in zip(("train", "val", "test"), kept, strict=True):
            rows[split][client] = own[places]
    for split in ("val", "test"):
        if held_in[split] == split:
            rows[split] = _by_owner(parts[split], divided)
    left_out = _too_small(divided, rows["train"], train, limits)
    for by_client in rows.values():
        for client in left_out:
            del by_client[client]
    clients = tuple(
        Client(client, len(own), _only_domain(domain, own)) for client, own in sorted(rows["train"].items())
    )
    tested_in = "test" if "test" in parts else "train"
    return Allocation(
        clients=clients,
        rows=rows,
        held_in=held_in,
        domains=_domains(parts, rows["test"], tested_in, limits.domain_column),
        tested_in=tested_in,
        labels=labels,
        left_out=left_out,
    )


def _divide(
    train: Part, partitioner: "Partitioner | None", domain: Column | None, limits: Limits, seed: int
) -> Partition:
    num_examples = len(train.dataset)
    if num_examples == 0:
        raise ConfigError("Expected the training set of `data.source` to have examples, but got none.")
    if partitioner is not None:
        return partition(partitioner, train.columns, num_examples, seed)
    if domain is None:
        return Partition({EVERYTHING: np.arange(num_examples)})
    return partition_by(domain, limits.domain_column)


def _has(part: Part | None, divided: Partition) -> bool:
    return part is not None and divided.natural is not None and part.columns.get(divided.natural) is not None


def _by_owner(part: Part, divided: Partition) -> dict[str, np.ndarray]:
    """The rows of the source's validation or test set that are each client's, by natural id."""
    assert divided.natural is not None
    column = part.columns.get(divided.natural)
    assert column is not None
    clients = list(divided.rows)
    place = {client: i for i, client in enumerate(clients)}
    owner_of = {code: place[divided.owners[name]] for code, name in column.as_names.items() if name in divided.owners}
    codes, inverse = np.unique(column.values, return_inverse=True)
    owners = np.array([owner_of.get(code, -1) for code in codes.tolist()], dtype=np.int64)[inverse]
    return split_by(owners, clients)


def split_by(owners: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """Name to the places where `owners` is its place in `names`, in one pass over the data."""
    order = np.argsort(owners, kind="stable")
    bounds = np.searchsorted(owners[order], np.arange(len(names) + 1))
    return {name: order[bounds[i] : bounds[i + 1]] for i, name in enumerate(names)}


def _too_small(divided: Partition, train_rows: Mapping[str, np.ndarray], train: Part, limits: Limits) -> dict[str, int]:
    totals = {name: train.columns.need(name, "data.min_total") for name in limits.min_total}
    small = {client: f"{len(own)} examples" for client, own in train_rows.items() if len(own) < limits.min_examples}
    for name, column in totals.items():
        for client, own in divided.rows.items():
            if (total := column.values[own].sum().item()) < limits.min_total[name]:
                small.setdefault(client, f"{total} {name}")
    if not small:
        return {}
    needed = " and ".join(
        [f"at least {limits.min_examples} training examples", *(f"{v:g} {k}" for k, v in limits.min_total.items())]
    )
    listed = ", ".join(f"{client!r}: {amount}" for client, amount in list(small.items())[:10])
    listed += f" and {len(small) - 10} more" if len(small) > 10 else ""
    if limits.small_clients == "refuse" or len(small) == len(train_rows):
        raise ConfigError(
            f"Expected every client to hold {needed}, but got {listed}. Have `data.partitioner` make fewer or larger"
            " parts (a larger `alpha` or `min_partition_size`), or leave such clients out with `data.small_clients:"
            " drop`."
        )
    rank_zero_info(f"Left out {len(small)} of {len(train_rows)} clients that do not hold {needed}: {listed}.")
    return {client: len(divided.rows[client]) for client in small}


def _only_domain(domain: Column | None, own: np.ndarray) -> str | None:
    if domain is None or not len(own):
        return None
    codes = domain.values[own]
    return domain.as_names[codes[0].item()] if (codes == codes[0]).all() else None


def _domains(
    parts: Mapping[str, Part], held: Mapping[str, np.ndarray], tested_in: str, domain_column: str
) -> dict[str, np.ndarray]:
    part = parts[tested_in]
    rows = np.arange(len(part.dataset)) if tested_in == "test" else np.sort(np.concatenate(list(held.values())))
    column = part.columns.get(domain_column)
    if column is None:
        return {EVERYTHING: rows} if len(rows) else {}
    by_domain = {name: rows[column.values[rows] == code] for code, name in column.as_names.items()}
    return {name: own for name, own in by_domain.items() if len(own)}
