from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from lit_fed.core.errors import ConfigError
from lit_fed.data.columns import Columns
from lit_fed.data.rows import Rows
from lit_fed.data.table import TensorTable

LABELS = [2, 0, 1, 0]


class Pairs(Dataset[Any]):
    """As torchvision's: pictures and labels; `targets` if asked for."""

    def __init__(self, targets: Any = None, classes: list[str] | None = None) -> None:
        self.seen = 0
        if targets is not None:
            self.targets = targets
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.seen += 1
        return torch.rand(3), LABELS[index]


class Dicts(Dataset[Any]):
    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": torch.zeros(2), "label": torch.tensor(LABELS[index]), "who": "ab"[index % 2]}


def values(dataset: Any, name: str = "labels", iterate: bool = False) -> list[int] | None:
    column = Columns(dataset, "training set").get(name, iterate)
    return None if column is None else column.values.tolist()


@pytest.mark.parametrize(
    "dataset",
    [
        TensorTable({"x": torch.zeros(4, 2), "labels": torch.tensor(LABELS)}),
        TensorTable({"target": torch.tensor(LABELS)}),
        TensorDataset(torch.zeros(4, 2), torch.tensor(LABELS)),
        Pairs(LABELS),
        Pairs(torch.tensor(LABELS)),
        Pairs(np.array(LABELS)),
        Subset(TensorDataset(torch.zeros(6), torch.tensor([9, *LABELS, 9])), [1, 2, 3, 4]),
        Rows(
            Subset(TensorDataset(torch.zeros(6), torch.tensor([9, *LABELS, 9])), [0, 4, 3, 2, 1]),
            torch.tensor([4, 3, 2, 1]),
        ),
        ConcatDataset([Pairs(LABELS), Subset(Pairs(LABELS), [])]),
        Subset(ConcatDataset([TensorDataset(torch.zeros(1), torch.tensor([7])), Pairs(LABELS)]), [1, 2, 3, 4]),
    ],
    ids=["table", "synonym", "tensors", "list", "tensor", "array", "subset", "nested", "joined", "of joined"],
)
def test_labels_are_found_without_an_example_being_made(dataset: Any, global_rng_untouched: None) -> None:
    assert values(dataset, "labels") == values(dataset, "label") == LABELS


def test_examples_are_gone_through_only_when_told_and_once(global_rng_untouched: None) -> None:
    dataset = Pairs()
    columns = Columns(dataset, "training set")
    assert columns.get("labels") is None
    assert dataset.seen == 0
    assert columns.need("labels", "x").values.tolist() == LABELS
    assert columns.need("label", "x").values.tolist() == LABELS
    assert dataset.seen == len(LABELS)


def test_examples_that_are_dicts_have_columns_by_name() -> None:
    columns = Columns(Dicts(), "training set")
    assert columns.need("labels", "x").values.tolist() == LABELS
    assert columns.need("who", "x").named().tolist() == ["a", "b", "a", "b"]


def test_texts_become_codes_in_sorted_order() -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"who": ["b", "a", "b"], "vector": [[1], [2], [3]], "weight": [0.5, 1.0, 2.0]})
    columns = Columns(rows, "training set")
    assert columns.get("who").values.tolist() == [1, 0, 1]
    assert columns.get("who").names == ("a", "b")
    assert columns.get("weight").values.tolist() == [0.5, 1.0, 2.0]
    assert columns.get("vector") is None
    assert columns.cheap() == ["weight", "who"]


def test_classes_have_their_names() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"label": datasets.ClassLabel(names=["no", "yes"])})
    column = Columns(datasets.Dataset.from_dict({"label": [1, 0, 1]}, features=features), "training set").get("labels")
    assert column.named().tolist() == ["yes", "no", "yes"]
    assert Columns(Pairs(LABELS, ["x", "y", "z"]), "training set").get("labels").named().tolist() == [
        "z",
        "x",
        "y",
        "x",
    ]


def test_numbers_are_named_so_that_they_sort_as_numbers() -> None:
    column = Columns(TensorTable({"user": torch.tensor([2, 10, 1])}), "training set").get("user")
    assert column.named().tolist() == ["02", "10", "01"]


def test_joined_sets_with_other_names_have_no_common_codes() -> None:
    parts = [TensorTable({"labels": torch.tensor([0])}, {"labels": [name]}) for name in "ab"]
    assert values(ConcatDataset(parts)) is None


def test_a_column_that_is_not_there_is_named_with_those_that_are() -> None:
    columns = Columns(
        TensorTable({"x": torch.zeros(2, 2), "labels": torch.zeros(2, dtype=torch.int64)}), "training set"
    )
    with pytest.raises(
        ConfigError, match=r"`a.b` to be a column of the training set .* but got 'speaker'. It has \['labels'\]"
    ):
        columns.need("speaker", "a.b")
