"""What processes tell one another survives the trip."""

import torch

from lit_fed.core.errors import ClientFailure
from lit_fed.core.types import Update
from lit_fed.engine.exchange import Exchange, Report, pack, unpack


class OneProcess:
    world_size = 1


def test_reports_survive_packing():
    adapter = {"head.weight": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), "other.x": torch.ones(1)}
    reports = [
        Report(Update("b", adapter, 7, {"loss": 0.5}), {"seconds": 1.5, "client": "b"}),
        Report(Update("a", {}, 0), {"client": "a"}),  # a client may send nothing
        Report(None, {"client": "c"}, ClientFailure("c", 3, "local", "lost power")),
    ]
    first, second, third = unpack(pack(reports))
    assert first.update is not None
    assert second.update is not None
    assert first.row == {"seconds": 1.5, "client": "b"}
    assert (first.update.client, first.update.num_examples, first.update.metrics) == ("b", 7, {"loss": 0.5})
    assert first.update.adapter.keys() == adapter.keys()
    assert all(torch.equal(first.update.adapter[name], tensor) for name, tensor in adapter.items())
    assert second.update == Update("a", {}, 0)
    assert third.update is None
    assert str(third.failure) == "Client 'c' failed in round 3 (local): lost power"


def test_clients_may_send_one_and_the_same_tensor():
    same = torch.arange(3.0)
    packed = pack([Report(Update("a", {"x": same, "y": same}, 1)), Report(Update("b", {"x": same}, 1))])
    first, second = (report.update for report in unpack(packed))
    assert first is not None
    assert second is not None
    assert [tensor.tolist() for tensor in first.adapter.values()] == [[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]
    assert second.adapter["x"].tolist() == [0.0, 1.0, 2.0]


def test_any_type_and_shape_survives_and_updates_share_no_memory():
    adapter = {
        "odd": torch.arange(3, dtype=torch.uint8),  # three bytes: what follows begins at a multiple of eight
        "count": torch.tensor(2**40),  # no dimensions
        "flags": torch.tensor([True, False]),
        "half": torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).bfloat16(),
        "none": torch.zeros(0, 4),
        "turned": torch.arange(6.0).view(2, 3).T,
    }
    first, second = (
        report.update for report in unpack(pack([Report(Update("a", adapter, 1)), Report(Update("b", adapter, 1))]))
    )
    assert first is not None
    assert second is not None
    for name, tensor in adapter.items():
        assert first.adapter[name].dtype == tensor.dtype
        assert first.adapter[name].shape == tensor.shape
        assert torch.equal(first.adapter[name], tensor)
    first.adapter["turned"].zero_()
    assert torch.equal(second.adapter["turned"], adapter["turned"])


def test_no_reports_are_no_reports():
    assert unpack(pack([])) == []


def test_one_process_copies_nothing_and_sorts():
    tensor = torch.ones(1)
    exchange = Exchange(OneProcess())
    gathered = exchange.gather([Report(Update("b", {"x": tensor}, 1)), Report(Update("a", {}, 1))])
    assert [report.update.client for report in gathered] == ["a", "b"]
    assert gathered[1].update.adapter["x"] is tensor
    assert exchange.gather_json({"a": 1}) == [{"a": 1}]
