"""The tables of a run: what is written is read again, whatever it looks like."""

from typing import Any

import pytest

from lit_fed.algorithms import FedAvg, FedRA
from lit_fed.engine.run_folder import RunFolder, read_csv
from tests.engine.test_engine import Breaks
from tests.engine.tiny import fit, pictures, points, tiny_vit

pytestmark = pytest.mark.usefixtures("one_thread")


def turn(round: int, client: str, allocation: str, **more: Any) -> dict[str, Any]:
    blocks = len(allocation.split()) or 4
    return {"round": round, "client": client, "domain": "007", "blocks": blocks, "allocation": allocation, **more}


def test_which_blocks_a_client_ran_if_not_all(tmp_path):
    result = fit(FedRA([3, 2, 1]), tiny_vit(), pictures(), tmp_path, rounds=3)
    rows = RunFolder(result.path).turns()
    assert [(row["client"], row["blocks"]) for row in rows] == [("00", 3), ("01", 2), ("02", 1)] * 3
    assert all(("allocation" in row) == (row["client"] != "00") for row in rows)
    for row in rows:
        blocks = [int(block) for block in row.get("allocation", "0 1 2").split()]
        assert len(blocks) == row["blocks"]
        assert blocks == sorted(set(blocks))
        assert set(blocks) <= {0, 1, 2}
    assert result.summary["num_blocks"] == 3
    everyone = fit(FedAvg(), tiny_vit(), pictures(), tmp_path)
    assert all("allocation" not in row for row in RunFolder(everyone.path).turns())


def test_what_looks_like_a_number_and_is_none(tmp_path):
    folder = RunFolder(tmp_path)
    first, second = turn(0, "01", "3"), turn(1, "01", "1 2", accuracy=0.5, failure="5")
    folder.add_round({"round": 0}, [first])
    folder.add_round({"round": 1}, [second])  # a new column: the table is written anew
    assert folder.turns() == [first, second]


def test_a_table_that_was_begun_without_the_column(tmp_path):
    (tmp_path / "clients.csv").write_text("round,client,blocks\n0,a,4\n1,a,4\n")
    folder = RunFolder(tmp_path)
    folder.rewind(1)
    folder.add_round({"round": 1}, [{"round": 1, "client": "a", "blocks": 2, "allocation": "0 3"}])
    assert (tmp_path / "clients.csv").read_text() == "round,client,blocks,allocation\n0,a,4,\n1,a,2,0 3\n"


def test_a_rewind_keeps_the_rows_of_its_rounds_to_the_byte(tmp_path):
    folder = RunFolder(tmp_path)
    for round in range(3):
        folder.add_round({"round": round}, [turn(round, "a", "0 3"), turn(round, "b", "")])
    lines = (tmp_path / "clients.csv").read_text().splitlines(keepends=True)
    again = RunFolder(tmp_path)
    again.rewind(2)
    assert (tmp_path / "clients.csv").read_text() == "".join(lines[:5])
    assert [row["round"] for row in again.history] == [0, 1]


def test_a_round_in_which_nobody_had_a_task(tmp_path):
    folder = RunFolder(tmp_path)
    folder.add_round({"round": 0}, [])
    folder.add_round({"round": 1}, [turn(1, "a", "0")])
    folder.add_round({"round": 2}, [])
    again = RunFolder(tmp_path)
    again.rewind(2)
    assert [row["round"] for row in again.turns()] == [1]
    assert [row["round"] for row in again.history] == [0, 1]


def test_half_a_line_is_none(tmp_path):
    (tmp_path / "t.csv").write_bytes("round,name\n0,ä\n1,ä".encode()[:-1])  # in the middle of a letter
    assert read_csv(tmp_path / "t.csv") == [{"round": 0, "name": "ä"}]
    (tmp_path / "t.csv").write_bytes(b"")
    assert read_csv(tmp_path / "t.csv") == []


class Talks(Breaks):
    """Fails with a message of several lines, as CUDA's are."""

    def training_step(self, batch, batch_idx):
        try:
            return super().training_step(batch, batch_idx)
        except OSError as error:
            raise OSError("no kernel,\n  for this\u2028device") from error


def test_a_failure_in_many_lines_does_not_break_the_table(tmp_path):
    fit(FedAvg(), Talks("raise"), points(), tmp_path, rounds=1, failure="drop")
    resumed = fit(FedAvg(), Talks("raise"), points(), tmp_path, rounds=2, failure="drop", ckpt_path="last")
    rows = RunFolder(resumed.path).turns()
    assert [row["round"] for row in rows] == [0, 0, 0, 1, 1, 1]
    assert [row.get("failure") for row in rows] == [None, "OSError: no kernel, for this device", None] * 2
