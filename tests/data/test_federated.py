import math
import sys
from collections.abc import Sequence
from itertools import chain
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, random_split

from lit_fed.core.errors import ConfigError
from lit_fed.data.federated import FederatedDataModule
from lit_fed.data.table import TensorTable, collate_table

partitioners = pytest.importorskip("flwr_datasets.partitioner")
NAMES = ["north", "south", "west"]


def table(num_examples: int, start: int = 0, domains: bool = True) -> TensorTable:
    """Examples with an id of their own, four labels, and three domains."""
    ids = torch.arange(start, start + num_examples)
    columns = {"id": ids, "labels": ids % 4}
    return TensorTable(columns | {"domain": ids % 3} if domains else columns, {"domain": NAMES} if domains else None)


class Source(LightningDataModule):
    """Any columns, any of the three parts."""

    def __init__(self, train: Any, val: Any = None, test: Any = None, **options: Any) -> None:
        super().__init__()
        self.parts = {"train": train, "val": val, "test": test}
        self.options = {"batch_size": 8, "collate_fn": collate_table, **options}

    def loader(self, part: str) -> Any:
        data = self.parts[part]
        return [] if data is None else DataLoader(data, **self.options)

    def train_dataloader(self) -> Any:
        return self.loader("train")

    def val_dataloader(self) -> Any:
        return self.loader("val")

    def test_dataloader(self) -> Any:
        return self.loader("test")


EMPTY = partitioners.DirichletPartitioner(20, "labels", 0.01, min_partition_size=0, seed=0)
"""Four labels, each nearly all one client's: most of 20 clients get nothing."""


def ids(loader: DataLoader[Any] | None) -> list[int]:
    return [] if loader is None else [i for batch in loader for i in batch["id"].tolist()]


def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def trained(data: FederatedDataModule, client: str | Sequence[str]) -> list[int]:
    return ids(data.train_loader(client, random()))


PARTITIONERS = {
    "iid": lambda: partitioners.IidPartitioner(5),
    "dirichlet": lambda: partitioners.DirichletPartitioner(5, "labels", 0.5, min_partition_size=3, seed=1),
    "pathological": lambda: partitioners.PathologicalPartitioner(6, "labels", 2, "first-deterministic", seed=1),
    "shards": lambda: partitioners.ShardPartitioner(6, "labels", num_shards_per_partition=2, seed=1),
    "sizes": lambda: partitioners.LinearPartitioner(4),
    "natural": lambda: partitioners.NaturalIdPartitioner("domain"),
    "grouped": lambda: partitioners.GroupedNaturalIdPartitioner("domain", 2),
    "none": lambda: None,
}


@pytest.mark.parametrize("kind", PARTITIONERS)
def test_every_example_is_one_clients_and_in_one_of_its_splits(kind: str, global_rng_untouched: None) -> None:
    data = FederatedDataModule(Source(table(240)), PARTITIONERS[kind]())
    seen = []
    for client in data.clients:
        own = trained(data, client.id)
        assert len(own) == client.num_examples
        seen += own + ids(data.eval_loader("val", client.id)) + ids(data.eval_loader("test", client.id))
    assert sorted(seen) == list(range(240))


def test_a_limited_part_is_always_the_same_and_not_just_the_first(global_rng_untouched: None) -> None:
    """One client, 60 of 240 examples to validate on; the data are sorted by label."""
    source = TensorTable({"id": torch.arange(240), "labels": torch.arange(240) // 60})
    make = lambda: FederatedDataModule(Source(source), partitioners.IidPartitioner(1), val_fraction=0.25)  # noqa: E731
    data = make()
    (client,) = data.clients
    whole = ids(data.eval_loader("val", client.id))
    few, more = (ids(data.eval_loader("val", client.id, limit)) for limit in (8, 20))
    assert len(whole) == 60
    assert len(few) == 8
    assert set(few) < set(more) < set(whole)
    assert few == sorted(few) != whole[:8]
    assert len({i // 60 for i in few}) > 1
    assert few == ids(make().eval_loader("val", client.id, 8))
    assert [ids(data.eval_loader("val", client.id, limit)) for limit in (60, 99)] == [whole, whole]


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "natural"])
def test_a_partition_depends_on_the_partitioners_seed_and_the_data_alone(kind: str) -> None:
    def who(seed: int) -> list[list[int]]:
        data = FederatedDataModule(Source(table(240)), PARTITIONERS[kind](), seed=seed)
        held = (
            (trained(data, c.id), ids(data.eval_loader("val", c.id)), ids(data.eval_loader("test", c.id)))
            for c in data.clients
        )
        return [sorted(chain(*parts)) for parts in held]

    assert who(0) == who(0)
    assert kind == "iid" or who(0) == who(1)  # IidPartitioner has no seed of its own


def test_a_partitioner_is_not_used_up() -> None:
    partitioner = PARTITIONERS["dirichlet"]()
    first, second = (FederatedDataModule(Source(table(240)), partitioner) for _ in range(2))
    assert [trained(first, c.id) for c in first.clients] == [trained(second, c.id) for c in second.clients]


def test_identically_distributed_means_so_even_if_the_data_are_sorted() -> None:
    labels = torch.arange(400) // 100
    data = FederatedDataModule(Source(TensorTable({"id": torch.arange(400), "labels": labels})), PARTITIONERS["iid"]())
    assert all(len(row["labels"]) == 4 for row in data.table())


def test_clients_are_called_by_their_natural_ids_and_else_by_number() -> None:
    def called(kind: str) -> list[str]:
        return [client.id for client in FederatedDataModule(Source(table(240)), PARTITIONERS[kind]()).clients]

    assert called("natural") == called("none") == NAMES
    assert called("iid") == ["00", "01", "02", "03", "04"]


def test_natural_numbers_are_padded_so_that_clients_sort_as_numbers() -> None:
    users = TensorTable({"id": torch.arange(60), "user": torch.arange(60) % 12})
    data = FederatedDataModule(Source(users), partitioners.NaturalIdPartitioner("user"))
    assert [client.id for client in data.clients] == [f"{user:02d}" for user in range(12)]
    assert all(i % 12 == 7 for i in trained(data, "07"))


def test_a_client_has_a_domain_if_all_its_examples_are_of_one() -> None:
    assert [c.domain for c in FederatedDataModule(Source(table(60)), PARTITIONERS["natural"]()).clients] == NAMES
    assert {c.domain for c in FederatedDataModule(Source(table(240)), PARTITIONERS["iid"]()).clients} == {None}


def test_the_sources_own_sets_are_divided_by_natural_id() -> None:
    source = Source(table(60), table(30, 100), table(90, 200))
    data = FederatedDataModule(source, PARTITIONERS["natural"]())
    for code, name in enumerate(NAMES):
        assert sorted(trained(data, name)) == [i for i in range(60) if i % 3 == code]
        assert ids(data.eval_loader("val", name)) == [i for i in range(100, 130) if i % 3 == code]
        assert ids(data.eval_loader("test", name)) == [i for i in range(200, 290) if i % 3 == code]
        assert data.eval_key("test", name) == data.domain_key(name)
        assert data.eval_key("val", name) != data.domain_key(name)


def test_natural_ids_are_matched_by_name_not_by_code() -> None:
    test = TensorTable(
        {"id": torch.arange(4), "domain": torch.tensor([0, 1, 1, 2])}, {"domain": ["west", "east", "north"]}
    )
    data = FederatedDataModule(Source(table(60), test=test), PARTITIONERS["natural"]())
    assert ids(data.eval_loader("test", "north")) == [3]
    assert ids(data.eval_loader("test", "west")) == [0]
    assert data.eval_loader("test", "south") is None
    assert data.domains == ("west", "east", "north")


def test_label_skewed_clients_test_on_their_own_labels_and_the_federation_on_the_sources_set() -> None:
    data = FederatedDataModule(Source(table(240), test=table(90, 500)), PARTITIONERS["dirichlet"](), test_fraction=0.25)
    for client in data.clients:
        train, test = trained(data, client.id), ids(data.eval_loader("test", client.id))
        assert not set(train) & set(test)
        part = train + test + ids(data.eval_loader("val", client.id))
        for label in range(4):
            exact = len(test) * sum(i % 4 == label for i in part) / len(part)
            assert abs(sum(i % 4 == label for i in test) - exact) < 1
    assert data.domains == tuple(NAMES)
    assert sorted(chain(*(ids(data.domain_loader(name)) for name in data.domains))) == list(range(500, 590))


def test_without_a_test_set_the_federation_tests_on_what_clients_hold_out() -> None:
    data = FederatedDataModule(Source(table(240, domains=False)), PARTITIONERS["iid"]())
    held_out = sorted(chain(*(ids(data.eval_loader("test", client.id)) for client in data.clients)))
    assert data.domains == ("all",)
    assert ids(data.domain_loader("all")) == held_out
    assert ids(data.test_dataloader()) == held_out


def test_what_one_client_holds_out_does_not_depend_on_the_others() -> None:
    alone = table(240).column("domain") == 1
    south = TensorTable(
        {name: table(240).column(name)[alone] for name in ("id", "labels", "domain")}, {"domain": NAMES}
    )
    both = [FederatedDataModule(Source(part), PARTITIONERS["natural"]()) for part in (table(240), south)]
    assert len({tuple(ids(data.eval_loader("test", "south"))) for data in both}) == 1


def test_nothing_is_held_out_where_no_fraction_is_given() -> None:
    data = FederatedDataModule(Source(table(60)), PARTITIONERS["iid"](), val_fraction=0, test_fraction=0)
    assert sum(client.num_examples for client in data.clients) == 60
    assert data.eval_loader("val", "00") is None
    assert data.domains == ()
    assert data.val_dataloader() == []
    with pytest.raises(ConfigError, match=r"Raise `data.test_fraction`"):
        data.test_dataloader()


def test_pooled_clients_are_their_union() -> None:
    data = FederatedDataModule(Source(table(240)), PARTITIONERS["iid"]())
    everyone = [client.id for client in data.clients]
    union = sorted(chain(*(trained(data, client) for client in everyone)))
    assert sorted(trained(data, everyone)) == sorted(ids(data.train_dataloader())) == union
    assert trained(data, everyone) == trained(data, everyone[::-1])
    assert trained(data, everyone[:1]) == trained(data, everyone[0])


def test_order_comes_from_the_generator_alone(global_rng_untouched: None) -> None:
    data = FederatedDataModule(Source(table(240)), PARTITIONERS["iid"]())
    loader = data.train_loader("00", random())
    first, second = ids(loader), ids(loader)
    assert first != second
    assert sorted(first) == sorted(second)
    assert first == trained(data, "00")


@pytest.mark.parametrize("num_examples", [240, 11])
def test_processes_share_the_batches_of_one(num_examples: int) -> None:
    data = FederatedDataModule(Source(table(num_examples), batch_size=4), partitioners.IidPartitioner(1))
    whole = [batch["id"].tolist() for batch in data.train_loader("00", random())]
    shards = [list(data.train_loader("00", random(), shard=(rank, 3))) for rank in range(3)]
    joined = [
        list(chain(*(s.batch["id"].tolist()[: s.num_local] for s in shares))) for shares in zip(*shards, strict=True)
    ]
    assert joined == whole


def test_batches_are_made_as_the_source_makes_them() -> None:
    source = Source(table(30), batch_size=7, drop_last=True, collate_fn=lambda batch: batch["id"])
    data = FederatedDataModule(source, partitioners.IidPartitioner(1), val_fraction=0, test_fraction=0)
    assert [len(batch) for batch in data.train_loader("00", random())] == [7, 7, 7, 7]
    bigger = FederatedDataModule(
        source, partitioners.IidPartitioner(1), val_fraction=0, test_fraction=0.4, batch_size=5
    )
    assert [len(batch) for batch in bigger.train_loader("00", random())] == [5, 5, 5]
    assert [len(batch) for batch in bigger.eval_loader("test", "00")] == [5, 5, 2]  # nothing is left out of a test


class Pictures(LightningDataModule):
    """As people write them: pairs, a split drawn from the global generators, `setup` by stage."""

    def setup(self, stage: str | None = None) -> None:
        pictures = TensorDataset(torch.arange(100.0).view(100, 1), torch.arange(100) % 5)
        self.train, self.val, self.test = random_split(pictures, [70, 10, 20])

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, batch_size=16, shuffle=True)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        return [DataLoader(self.val, batch_size=16)]

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.test, batch_size=16)


def test_a_plain_datamodule_of_pairs_is_divided_as_it_is(global_rng_untouched: None) -> None:
    def held() -> list[list[float]]:
        data = FederatedDataModule(
            Pictures(), partitioners.DirichletPartitioner(3, "label", 1.0, min_partition_size=5, seed=0)
        )
        loaders = [data.train_loader(client.id, random()) for client in data.clients]
        loaders += [data.eval_loader(split, c.id) for split in ("val", "test") for c in data.clients]
        parts = [[x for xs, ys in loader for x in xs.flatten().tolist()] for loader in loaders]
        parts.append([x for xs, ys in data.domain_loader("all") for x in xs.flatten().tolist()])
        return parts

    parts = held()
    assert len(list(chain(*parts))) == len(set(chain(*parts))) == 90  # the source's 10 to validate on are nobody's
    assert parts == held()


class Bare(Dataset[Any]):
    def __init__(self) -> None:
        self.seen = 0

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.seen += 1
        return torch.tensor(index), index % 4


def test_examples_are_gone_through_only_if_the_partitioner_asks_for_labels() -> None:
    bare = Bare()
    source = Source(bare, collate_fn=torch.utils.data.default_collate)
    data = FederatedDataModule(source, PARTITIONERS["iid"]())
    assert len(data.clients) == 5
    assert bare.seen == 0
    assert data.table()[0]["labels"] is None
    data = FederatedDataModule(source, partitioners.PathologicalPartitioner(4, "labels", 1, "deterministic", seed=0))
    assert [row["labels"] for row in data.table()] == [{str(label): 7} for label in range(4)]
    assert bare.seen == 40


def test_an_encoder_is_only_for_raw_rows() -> None:
    data = FederatedDataModule(Source(table(60)), PARTITIONERS["iid"]())
    data.setup_clients(lambda rows: pytest.fail("these are tensors already"))
    assert trained(data, "00")


def test_the_partition_stays_when_it_is_set_up_again() -> None:
    data = FederatedDataModule(Source(table(60)), PARTITIONERS["iid"]())
    allocation = data.allocation
    data.setup_clients()
    data.setup("fit")
    assert data.allocation is allocation


def test_predictions_are_for_the_sources_prediction_set_else_the_test_set() -> None:
    class Predicts(Source):
        def predict_dataloader(self) -> DataLoader[Any]:
            return DataLoader(table(5, 900), batch_size=2, collate_fn=collate_table)

    parts = (table(60), None, table(9, 500))
    assert ids(FederatedDataModule(Predicts(*parts)).predict_loader()) == [900, 901, 902, 903, 904]
    assert ids(FederatedDataModule(Source(*parts)).predict_loader()) == list(range(500, 509))


def test_the_table_counts_what_loaders_give() -> None:
    data = FederatedDataModule(Source(table(240)), PARTITIONERS["pathological"]())
    for row, client in zip(data.table(), data.clients, strict=True):
        labels = [i % 4 for i in trained(data, client.id)]
        assert row["labels"] == {str(label): labels.count(label) for label in sorted(set(labels))}
        assert (row["train"], row["test"]) == (len(labels), len(ids(data.eval_loader("test", client.id))))
        shares = [count / len(labels) for count in row["labels"].values()]
        assert math.isclose(row["label_entropy_bits"], -sum(p * math.log2(p) for p in shares), abs_tol=1e-12)


def test_a_loader_does_not_do_more_where_clients_are_ten_thousand() -> None:
    def calls(num_clients: int) -> int:
        users = TensorTable({"id": torch.arange(2 * num_clients), "user": torch.arange(2 * num_clients) % num_clients})
        data = FederatedDataModule(Source(users), partitioners.NaturalIdPartitioner("user"), val_fraction=0)
        assert len(data.clients) == num_clients
        data.train_loader(data.clients[0].id, random())  # the first may set things up
        counted = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal counted
            counted += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            data.train_loader(data.clients[1].id, random())
        finally:
            sys.setprofile(None)
        return counted

    assert calls(10_000) == calls(10) > 10


class Endless(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter([])


SIXTY = Source(table(60))
MAKE = partitioners
OUT_OF_RANGE = Source(TensorTable({"labels": torch.tensor([0, -1, 1])}, {"labels": ["a"]}))


@pytest.mark.parametrize(
    ("source", "partitioner", "options", "message"),
    [
        (SIXTY, None, {"val_fraction": 1.0}, r"`data.val_fraction` to be in \[0, 1\), but got 1.0"),
        (SIXTY, None, {"val_fraction": 0.5, "test_fraction": 0.5}, r"leave something to train on"),
        (SIXTY, None, {"batch_size": 0}, r"`data.batch_size` to be >= 1, but got 0"),
        (SIXTY, None, {"min_examples": 0}, r"`data.min_examples` to be >= 1, but got 0"),
        (SIXTY, None, {"small_clients": "keep"}, r"'refuse' or 'drop', but got 'keep'"),
        (SIXTY, MAKE.NaturalIdPartitioner("speaker"), {}, r"but got 'speaker'. It has \['domain'"),
        (SIXTY, EMPTY, {}, r": 0 examples"),
        (SIXTY, MAKE.IidPartitioner(5), {"min_examples": 40}, r"'00': 9 examples"),
        (SIXTY, None, {"min_total": {"labels": 31}}, r"'north': 30 labels"),
        (SIXTY, None, {"min_total": {"weight": 1}}, r"`data.min_total` to be a column"),
        (SIXTY, MAKE.DirichletPartitioner(5, "labels", 1.0, seed=None), {}, r"`data.partitioner.seed` to be an int"),
        (SIXTY, MAKE.DirichletPartitioner(61, "labels", 1.0), {}, r"Partitioner says: The number of partitions"),
        (SIXTY, MAKE.VerticalEvenPartitioner(2), {}, r"divides the columns"),
        (Source(table(0)), None, {}, r"to have examples, but got none"),
        (Source(None), None, {}, r"to have a training set"),
        (Source(Endless()), None, {}, r"map-style data set, but got a Endless"),
        (OUT_OF_RANGE, None, {}, r"from 0 to 0, but got \[-1, 1\] \(2 examples\)"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    source: Any, partitioner: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        FederatedDataModule(source, partitioner, **options).setup_clients()


def test_a_partitioner_that_has_been_used_is_refused() -> None:
    used = partitioners.IidPartitioner(2)
    used.dataset = pytest.importorskip("datasets").Dataset.from_dict({"index": [0, 1]})
    with pytest.raises(ConfigError, match=r"`data.partitioner` to be fresh"):
        FederatedDataModule(SIXTY, used).setup_clients()


def test_several_loaders_of_one_kind_are_refused() -> None:
    class Two(Source):
        def val_dataloader(self) -> Any:
            return [self.loader("train")] * 2

    with pytest.raises(ConfigError, match=r"`val_dataloader` of `data.source` to return one DataLoader, but got 2"):
        FederatedDataModule(Two(table(9))).setup_clients()


def test_a_loader_with_batches_of_its_own_needs_a_batch_size() -> None:
    source = Source(table(60), batch_size=1, batch_sampler=[[0, 1], [2]])
    with pytest.raises(ConfigError, match=r"`data.batch_size` to be given"):
        FederatedDataModule(source, PARTITIONERS["iid"]()).train_loader("00", random())
    data = FederatedDataModule(source, PARTITIONERS["iid"](), batch_size=3)
    assert [len(batch["id"]) for batch in data.train_loader("00", random())] == [3, 3, 3]


def test_settings_are_refused_together() -> None:
    with pytest.raises(ConfigError) as caught:
        FederatedDataModule(Source(table(60)), val_fraction=-1, batch_size=0, min_examples=0)
    assert len(caught.value.problems) == 3


def test_the_number_of_classes_may_be_the_sources() -> None:
    source = Source(table(60))
    source.num_classes = 3
    with pytest.raises(ConfigError, match=r"from 0 to 2, but got \[3\] \(15 examples\)"):
        FederatedDataModule(source).setup_clients()


def test_a_partitioner_that_gives_an_example_twice_is_refused() -> None:
    class Everything(partitioners.IidPartitioner):
        def load_partition(self, partition_id: int) -> Any:
            return self.dataset.select(range(len(self.dataset)))

    with pytest.raises(ConfigError, match="60 examples are given to several"):
        FederatedDataModule(Source(table(60)), Everything(2)).setup_clients()


def test_ones_own_partitioner_may_use_all_of_a_data_set() -> None:
    class Thirds(partitioners.Partitioner):
        num_partitions = 3

        def load_partition(self, partition_id: int) -> Any:
            return self.dataset.filter(lambda row: row["domain"] == partition_id)

    data = FederatedDataModule(Source(table(60)), Thirds(), val_fraction=0, test_fraction=0)
    assert [sorted(trained(data, client.id)) for client in data.clients] == [
        list(range(code, 60, 3)) for code in range(3)
    ]


def test_small_clients_may_be_left_out() -> None:
    make = partitioners.SizePartitioner([40, 17, 2, 1])
    data = FederatedDataModule(Source(table(60)), make, min_examples=5, small_clients="drop")
    assert [client.id for client in data.clients] == ["00", "01"]
    assert data.allocation.left_out == {"02": 2, "03": 1}
    assert len(ids(data.test_dataloader())) == 8 + 3  # a fifth of 40 and of 17
    with pytest.raises(ConfigError, match="'02'"):
        data.train_loader("02", random())
    with pytest.raises(ConfigError, match="at least 60 training examples"):
        FederatedDataModule(Source(table(60)), make, min_examples=60, small_clients="drop").setup_clients()


def test_unknown_clients_and_domains_are_named() -> None:
    data = FederatedDataModule(Source(table(60)), PARTITIONERS["natural"]())
    with pytest.raises(ConfigError, match="but got 'east'"):
        data.eval_loader("test", "east")
    with pytest.raises(ConfigError, match="but got 'east'"):
        data.domain_loader("east")
