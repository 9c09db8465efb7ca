from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

from lit_fed.cli.tables import holdings, scores


def shown(table: Table) -> list[list[str]]:
    console = Console(file=StringIO(), width=200)
    console.print(table)
    return [line.split() for line in console.file.getvalue().splitlines() if line.strip()]


def client(name: str, **labels: int) -> dict[str, Any]:
    return {"client": name, "domain": "plain", "train": sum(labels.values()), "val": 2, "test": 3, "labels": labels}


def test_few_labels_have_a_column_each_numbers_by_value() -> None:
    rows = shown(holdings([client("a", **{"10": 4, "9": 1}), client("b", **{"9": 5})]))
    assert ["client", "domain", "train", "val", "test", "9", "10"] in rows
    assert ["a", "plain", "5", "2", "3", "1", "4"] in rows
    assert ["b", "plain", "5", "2", "3", "5", "0"] in rows
    assert ["all", "10", "4", "6"] in rows


def test_of_many_labels_their_number_is_shown() -> None:
    rows = shown(holdings([client("a", **{f"l{i}": 1 for i in range(20)}), client("b", l0=3, l1=0)]))
    assert ["a", "plain", "20", "2", "3", "20"] in rows
    assert ["b", "plain", "3", "2", "3", "1"] in rows


def test_many_clients_are_not_all_shown_but_all_counted() -> None:
    rows = shown(holdings([client(f"c{i}", x=1) for i in range(50)]))
    assert ["...", "10", "more"] in rows
    assert ["all", "50", "100", "150"] in rows


def test_labels_that_cannot_be_read() -> None:
    row = client("a") | {"labels": None, "train": 7}
    assert ["a", "plain", "7", "2", "3"] in shown(holdings([row]))


def test_scores() -> None:
    assert ["global/accuracy", "0.1235"] in shown(scores({"global/accuracy": 0.12345}))
