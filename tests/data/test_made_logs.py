"""What made-up logs are: readable, the same for a seed, and of three kinds of lines."""

import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from lit_fed.data import FederatedDataModule, SystemLogs
from lit_fed.data.log_lines import NORMAL, parse, read_lines
from lit_fed.data.made_logs import DISPUTED, FAILURES, ROUTINE, disputed_alerts, made_lines, write_logs

partitioners = pytest.importorskip("flwr_datasets.partitioner")
NODES = ["a0", "a1", "b0", "b1"]


def kind_of(message: str) -> str:
    """A message without its number."""
    return re.sub(r"\d+", "{}", message)


def test_every_line_has_the_public_form(tmp_path: Path, global_rng_untouched: None) -> None:
    files = write_logs(tmp_path / "logs", nodes=2, num_lines=30)
    assert {system: Path(file).name for system, file in files.items()} == {"A": "A.log", "B": "B.log", "C": "C.log"}
    for system, file in files.items():
        lines = list(read_lines([file]))
        assert Counter(line.node for line in lines) == {f"{system.lower()}0": 30, f"{system.lower()}1": 30}
        assert {kind_of(line.message) for line in lines} <= {*ROUTINE, *FAILURES, *DISPUTED}  # no time, no node


def test_failures_are_alerts_everywhere_routine_nowhere_and_disputes_depend_on_the_node() -> None:
    tagged: dict[str, dict[str, set[bool]]] = defaultdict(lambda: defaultdict(set))
    for node, line in made_lines(NODES, 2000, seed=1):
        parsed = parse(line)
        assert parsed is not None
        assert parsed.node == node
        tagged[kind_of(parsed.message)][node].add(parsed.tag != NORMAL)
    assert all(tagged[kind][node] == {False} for kind in ROUTINE for node in NODES)
    assert all(tagged[kind][node] == {True} for kind in FAILURES for node in NODES)
    for node in NODES:  # always the same at one node
        assert sorted(next(iter(tagged[kind][node])) for kind in DISPUTED) == [False] * 3 + [True] * 3
        assert all(len(tagged[kind][node]) == 1 for kind in DISPUTED)
    for kind in DISPUTED:  # at half of the nodes
        assert [next(iter(tagged[kind][node])) for node in NODES].count(True) == 2


def test_neighbours_have_opposite_halves() -> None:
    alerts = disputed_alerts(NODES, seed=3)
    assert alerts["a0"] | alerts["a1"] == alerts["b0"] | alerts["b1"] == set(DISPUTED)
    assert not alerts["a0"] & alerts["a1"]


def test_what_is_written_is_a_function_of_the_seed(tmp_path: Path) -> None:
    def written(seed: int, name: str) -> list[bytes]:
        return [Path(file).read_bytes() for file in write_logs(tmp_path / name, 1, 50, seed).values()]

    assert written(0, "first") == written(0, "second")
    assert all(one != other for one, other in zip(written(0, "first"), written(1, "third"), strict=True))


def test_nodes_are_clients_and_half_of_the_windows_are_anomalous(tmp_path: Path) -> None:
    source = SystemLogs(write_logs(tmp_path), window=5)
    data = FederatedDataModule(source, partitioners.NaturalIdPartitioner("node"))
    assert [client.id for client in data.clients] == [f"{s} {s.lower()}{n}" for s in "ABC" for n in range(3)]
    labels = source.rows["labels"]
    # A line is an alert with 0.05 + 0.16 / 2, a window with 1 - 0.87 ** 5 = 0.502; 900 windows, so +- 3 x 0.017.
    assert len(labels) > 880  # few are equal
    assert 0.45 < sum(labels) / len(labels) < 0.55
