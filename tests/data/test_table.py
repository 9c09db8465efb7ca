import pytest
import torch
from torch.utils.data import DataLoader, Subset

from lit_fed.data.table import TensorTable, collate_table


@pytest.fixture
def table() -> TensorTable:
    columns = {"pixel_values": torch.arange(20.0).view(5, 2, 2), "labels": torch.arange(5)}
    return TensorTable(columns, names={"labels": ["a", "b", "c", "d", "e"]})


def test_an_example_is_a_row_of_each_column(table: TensorTable) -> None:
    assert len(table) == 5
    assert table.columns == ("pixel_values", "labels")
    example = table[3]
    assert example["labels"].item() == 3
    assert torch.equal(example["pixel_values"], torch.tensor([[12.0, 13.0], [14.0, 15.0]]))


def test_a_batch_at_once_is_the_examples_stacked(table: TensorTable) -> None:
    batch, stacked = table.__getitems__([4, 0, 0]), collate_table([table[4], table[0], table[0]])
    assert batch.keys() == stacked.keys()
    assert all(torch.equal(batch[name], stacked[name]) for name in batch)


def test_no_rows_are_an_empty_batch(table: TensorTable) -> None:
    assert table.__getitems__([])["pixel_values"].shape == (0, 2, 2)


@pytest.mark.parametrize(
    "wrap", [lambda table: table, lambda table: Subset(table, [0, 1, 2, 3, 4])], ids=["table", "subset"]
)
def test_a_loader_gives_batches_in_order_and_the_last_short(table: TensorTable, wrap: type) -> None:
    batches = list(DataLoader(wrap(table), batch_size=2, collate_fn=collate_table))
    assert [len(batch["labels"]) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([batch["pixel_values"] for batch in batches]), table.column("pixel_values"))


def test_names_belong_to_the_table_not_to_the_caller() -> None:
    names = {"labels": ["a", "b"]}
    table = TensorTable({"labels": torch.tensor([0, 1])}, names=names)
    names["labels"].append("c")
    assert table.names == {"labels": ["a", "b"]}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "at least one column, but got none"),
        ({"a": torch.zeros(2), "b": torch.zeros(3)}, "equal length, but got {'a': 2, 'b': 3}"),
        ({"a": torch.zeros(2), "b": torch.tensor(1.0)}, "equal length, but got {'a': 2, 'b': None}"),
    ],
)
def test_unequal_columns_are_refused(columns: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorTable(columns)


def test_names_for_an_unknown_column_are_refused() -> None:
    with pytest.raises(ValueError, match=r"columns among \['a'\], but got \['b'\]"):
        TensorTable({"a": torch.zeros(2)}, names={"b": ["x"]})


def test_an_unknown_column_is_refused(table: TensorTable) -> None:
    with pytest.raises(ValueError, match="but got 'label'"):
        table.column("label")
