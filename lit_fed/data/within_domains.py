"""Clients that each hold a part of one domain."""

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr_datasets.partitioner import Partitioner

from lit_fed.core.errors import ConfigError
from lit_fed.core.seeding import derive_seed
from lit_fed.data.columns import Columns
from lit_fed.data.partition import Partition, partition, partition_by

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["WithinDomains"]


class WithinDomains(Partitioner):
    """Divides each domain by another partitioner, so that every client has one domain: feature and label skew.

    Clients are called ``<domain>-<n>``, or ``<domain>-<id>`` if the inner partitioner goes by a natural id. Each domain
    is divided with random numbers of its own, a function of the inner partitioner's seed and the domain's name: with
    the same numbers, the n-th clients of all domains would have nearly the same labels.

    FedRA's authors (github.com/leondada/FedRA, ``datasets/DomainNet.py``) divide a domain of N examples over n clients
    by a Dirichlet draw for each class. A client that holds N / n examples or more gets nothing of the classes that are
    left, the others' shares are scaled up to one, and all is drawn again until each client has ten examples. That is
    ``DirichletPartitioner`` with ``self_balancing: true`` and ``min_partition_size: 10``, but for two things: there a
    client with exactly N / n examples still gets more, and after the eleventh draw it gives up. Without
    ``self_balancing``, its default, nothing holds a client back, and sizes differ more.

    Args:
        partitioner: Of flwr-datasets, or any other. It is copied for each domain, not used up.
        domain_column: Column that says which domain an example is of.

    Example::

        dirichlet = DirichletPartitioner(5, "labels", alpha=0.5, min_partition_size=10, self_balancing=True)
        data = FederatedDataModule(Digits(), WithinDomains(dirichlet))
        data.clients[0]  # id "blurred-0", domain "blurred"
    """

    def __init__(self, partitioner: Partitioner, domain_column: str = "domain") -> None:
        super().__init__()
        self._partitioner, self._domain_column = partitioner, domain_column
        self._places: list[np.ndarray] | None = None

    def divide(self, columns: Columns, num_examples: int, seed: int) -> Partition:
        """Who holds which example; see `lit_fed.data.partition.partition`, which calls this.

        Args:
            columns: Of the training set.
            num_examples: Of the training set.
            seed: For inner partitioners without a seed.

        Raises:
            ConfigError: If there is no column of domains, or a domain cannot be divided; names the domain.
        """
        domains = partition_by(columns.need(self._domain_column, "data.partitioner.domain_column"), "")
        rows: dict[str, np.ndarray] = {}
        for domain, own in domains.rows.items():
            try:
                inner = partition(
                    _for_domain(self._partitioner, domain),
                    columns.of_rows(own),
                    len(own),
                    derive_seed(seed, "within", domain),
                )
            except ConfigError as error:
                raise ConfigError([f"In domain {domain!r}: {problem}" for problem in error.problems]) from error
            width = len(str(len(inner.rows) - 1))
            for place, (client, part) in enumerate(inner.rows.items()):
                name = f"{domain}-{client if inner.natural is not None else str(place).zfill(width)}"
                if name in rows:
                    raise ConfigError(
                        f"Expected domains and ids to give each client a name of its own, but got {name!r} twice."
                        " Rename one."
                    )
                rows[name] = own[part]
        return Partition(dict(sorted(rows.items())))

    # flwr-datasets' own interface

    @property
    def num_partitions(self) -> int:
        """Number of clients of all domains."""
        return len(self._divided())

    def load_partition(self, partition_id: int) -> "Dataset":
        """The rows of one client; clients are numbered in the order of their names."""
        return self.dataset.select(self._divided()[partition_id])

    def _divided(self) -> list[np.ndarray]:
        if self._places is None:
            columns = Columns(self.dataset, "data set")
            self._places = list(self.divide(columns, len(self.dataset), seed=0).rows.values())
        return self._places


def _for_domain(partitioner: Partitioner, domain: str) -> Any:
    """A copy with the domain's own random numbers."""
    worker = copy.deepcopy(partitioner)
    seed = getattr(worker, "_seed", None)
    if seed is not None:
        worker._seed = derive_seed(seed, "domain", domain)
        worker._rng = np.random.default_rng(worker._seed)
    return worker
