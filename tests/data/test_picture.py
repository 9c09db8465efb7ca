from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lit_fed.data.federated import FederatedDataModule
from lit_fed.data.table import TensorTable, collate_table

pytest.importorskip("matplotlib")
partitioners = pytest.importorskip("flwr_datasets.partitioner")


class Source(LightningDataModule):
    def __init__(self, num_labels: int, num_examples: int = 600) -> None:
        super().__init__()
        labels = torch.arange(num_examples) % max(1, num_labels)
        names = {"labels": [f"<{label}>" for label in range(num_labels)]} if num_labels else None
        self.table = TensorTable({"labels" if num_labels else "x": labels}, names)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.table, batch_size=4, collate_fn=collate_table)


def divided(num_labels: int, num_clients: int) -> FederatedDataModule:
    return FederatedDataModule(Source(num_labels), partitioners.IidPartitioner(num_clients), test_fraction=0)


def test_bars_are_as_long_as_clients_are_large_and_one_colour_a_label() -> None:
    data = divided(3, 6)
    axes = data.plot().axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["<0>", "<1>", "<2>"]
    ends = {}
    for bar in axes.patches:
        ends[round(bar.get_y() + bar.get_height() / 2)] = bar.get_x() + bar.get_width()
    assert [ends[place] for place in range(6)] == [client.num_examples for client in data.clients]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [client.id for client in data.clients]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("training examples", "client")


def test_more_labels_than_colours_are_a_heat_map_with_all_counts() -> None:
    data = divided(150, 8)
    axes, scale = data.plot().axes
    assert int(axes.images[0].get_array().sum()) == sum(client.num_examples for client in data.clients)
    assert axes.images[0].get_array().shape == (8, 150)
    assert scale.get_ylabel() == "training examples"
    assert axes.get_xlabel().startswith("label")


@pytest.mark.parametrize(("num_labels", "num_clients"), [(2, 1), (10, 100), (20, 300), (150, 100), (0, 7)])
def test_any_size_is_drawn_and_no_name_overlaps_another(num_labels: int, num_clients: int) -> None:
    figure = divided(num_labels, num_clients).plot()
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [tick.get_window_extent() for tick in axes.get_yticklabels() if tick.get_text()]
    assert boxes
    assert all(not one.overlaps(other) for one, other in pairwise(boxes))


def test_it_is_written_and_shown(tmp_path: Path) -> None:
    data = divided(3, 4)
    data.plot(str(tmp_path / "clients.png"))
    assert (tmp_path / "clients.png").read_bytes().startswith(b"\x89PNG")
    html = data._repr_html_()
    assert html.count("<tr>") == 5
    assert "data:image/png;base64," in html
