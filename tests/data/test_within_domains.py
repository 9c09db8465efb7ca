from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lit_fed.cli.settings import Settings
from lit_fed.core.errors import ConfigError
from lit_fed.data.digits import Digits
from lit_fed.data.federated import FederatedDataModule
from lit_fed.data.table import TensorTable, collate_table
from lit_fed.data.within_domains import WithinDomains

datasets = pytest.importorskip("datasets")
partitioners = pytest.importorskip("flwr_datasets.partitioner")
NAMES = ["moor", "fen", "bog"]


class Source(LightningDataModule):
    """600 examples, dealt to three domains in turn: each has 50 of each of four labels; 40 people in each."""

    def __init__(self, dataset: Any = None) -> None:
        super().__init__()
        ids = torch.arange(600)
        columns = {"id": ids, "labels": ids // 3 % 4, "domain": ids % 3, "person": ids // 3 % 40}
        self.dataset = dataset or TensorTable(columns, {"domain": NAMES})

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.dataset, 10, collate_fn=collate_table)


def dirichlet(**changed: Any) -> Any:
    settings = {"num_partitions": 5, "partition_by": "labels", "alpha": 0.5, "min_partition_size": 10, "seed": 1}
    return partitioners.DirichletPartitioner(**{**settings, **changed})


def held(partitioner: Any, source: LightningDataModule | None = None, **settings: Any) -> dict[str, list[int]]:
    """Who holds which rows."""
    data = FederatedDataModule(
        source or Source(), WithinDomains(partitioner), val_fraction=0.0, test_fraction=0.0, **settings
    )
    return {client.id: data.allocation.held("train", client.id)[1].tolist() for client in data.clients}


def by_label(rows: list[int]) -> list[int]:
    return np.bincount(np.array(rows) // 3 % 4, minlength=4).tolist()


def test_every_example_is_one_clients_and_clients_have_one_domain(global_rng_untouched: None) -> None:
    data = FederatedDataModule(Source(), WithinDomains(dirichlet()), val_fraction=0.0, test_fraction=0.0)
    assert [client.id for client in data.clients] == [f"{name}-{n}" for name in sorted(NAMES) for n in range(5)]
    seen = []
    for client in data.clients:
        rows = data.allocation.held("train", client.id)[1].tolist()
        assert {NAMES[row % 3] for row in rows} == {client.domain} == {client.id.partition("-")[0]}
        assert len(rows) >= 10
        seen += rows
    assert sorted(seen) == list(range(600))


def test_a_division_depends_on_the_partitioners_seed_alone() -> None:
    assert held(dirichlet()) == held(dirichlet()) == held(dirichlet(), seed=7)
    assert held(dirichlet()) != held(dirichlet(seed=2))


def test_domains_of_the_same_labels_are_divided_differently() -> None:
    clients = held(dirichlet())
    assert len({tuple(tuple(by_label(clients[f"{name}-{n}"])) for n in range(5)) for name in NAMES}) == 3


def test_partitioners_without_a_seed_cut_another_order_in_each_domain() -> None:
    clients = held(partitioners.IidPartitioner(5))
    assert {len(rows) for rows in clients.values()} == {40}
    assert len({tuple(row // 3 for row in clients[f"{name}-0"]) for name in NAMES}) == 3
    assert clients != held(partitioners.IidPartitioner(5), seed=1)


def test_a_domains_division_does_not_depend_on_the_others() -> None:
    whole = Source().dataset
    rows = torch.arange(600)[torch.arange(600) % 3 == 1]
    alone = TensorTable({name: whole.column(name)[rows] for name in whole.columns}, {"domain": NAMES})
    clients = held(dirichlet())
    assert {name: rows[np.array(own)].tolist() for name, own in held(dirichlet(), Source(alone)).items()} == {
        name: own for name, own in clients.items() if name.startswith("fen")
    }


def test_with_self_balancing_a_client_with_more_than_its_share_gets_no_further_class() -> None:
    def exceed(balancing: bool) -> list[bool]:
        """For each client and class: it had more than 200 / 5 examples before, and got some of this class too."""
        clients = held(dirichlet(self_balancing=balancing))
        counts = [by_label(rows) for rows in clients.values()]
        return [sum(own[:label]) > 40 and own[label] > 0 for own in counts for label in range(4)]

    assert not any(exceed(True))
    assert any(exceed(False))


def test_clients_are_numbered_in_equal_width_and_natural_ids_are_kept() -> None:
    assert list(held(partitioners.IidPartitioner(12)))[:3] == ["bog-00", "bog-01", "bog-02"]
    people = held(partitioners.NaturalIdPartitioner("person"))
    assert len(people) == 3 * 40
    assert people["fen-07"] == [row for row in range(600) if row % 3 == 1 and row // 3 % 40 == 7]


def test_a_partitioner_is_not_used_up() -> None:
    inner = dirichlet()
    assert held(inner) == held(inner)


def test_columns_are_read_by_going_through_the_examples_if_need_be() -> None:
    table = Source().dataset

    class Listed(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(table)

        def __getitem__(self, index: int) -> dict[str, Any]:
            example = {name: int(value) for name, value in table[index].items()}
            return {**example, "domain": NAMES[example["domain"]]}

    assert held(dirichlet(), Source(Listed())) == held(dirichlet())


def test_the_embedded_digits_in_a_configuration_file(tmp_path: Path) -> None:
    file = tmp_path / "skewed.yaml"
    file.write_text(
        """
model: {class_path: ImageClassifier, init_args: {num_labels: 10}}
algorithm: FedAvg
data:
  source: Digits
  partitioner:
    class_path: WithinDomains
    init_args:
      partitioner:
        class_path: DirichletPartitioner
        init_args:
          {num_partitions: 5, alpha: 0.5, partition_by: label, min_partition_size: 10, self_balancing: true}
"""
    )
    data = Settings(["--config", str(file)]).data()
    assert len(data.clients) == 30
    assert (data.clients[0].id, data.clients[0].domain) == ("blurred-0", "blurred")
    assert data.domains == Digits().domains  # tested globally as before


def test_one_may_use_it_without_lit_fed() -> None:
    rows = [{"text": str(i), "labels": i // 3 % 4, "domain": NAMES[i % 3]} for i in range(600)]
    partitioner = WithinDomains(dirichlet())
    partitioner.dataset = datasets.Dataset.from_list(rows)
    assert partitioner.num_partitions == 15
    parts = [partitioner.load_partition(i) for i in range(15)]
    assert [{*part["domain"]} for part in parts] == [{name} for name in sorted(NAMES) for _ in range(5)]
    assert sorted(int(text) for part in parts for text in part["text"]) == list(range(600))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WithinDomains(dirichlet(), "region"), r"`data.partitioner.domain_column` to be a column .* 'region'"),
        (
            lambda: WithinDomains(dirichlet(seed=None)),
            r"In domain 'bog': Expected `data.partitioner.seed` to be an int",
        ),
        (lambda: WithinDomains(dirichlet(partition_by="mood")), r"In domain 'bog': .* but got 'mood'"),
        (lambda: WithinDomains(dirichlet(num_partitions=201)), r"In domain 'bog': .*fit the training set, but Dirich"),
    ],
)
def test_what_cannot_be_divided_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FederatedDataModule(Source(), make()).setup_clients()


def test_names_that_collide_are_refused() -> None:
    rows = [{"domain": "a", "who": "b-c", "x": 0}, {"domain": "a-b", "who": "c", "x": 1}]
    source = Source(datasets.Dataset.from_list(rows * 4))
    with pytest.raises(ConfigError, match="each client a name of its own, but got 'a-b-c' twice"):
        FederatedDataModule(source, WithinDomains(partitioners.NaturalIdPartitioner("who"))).setup_clients()
