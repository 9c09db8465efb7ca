"""Contenders that take turns wait for one another, and say what a round took."""

import os
import sys
import time

import pytest

from benchmarks.turns import Player

PLAY = """
import sys
from pathlib import Path
from benchmarks.turns import Rounds
folder = Path(sys.argv[1])
rounds = Rounds(folder, tells=True)
for round in range(2):
    rounds.next()
    (folder / f"begun_{round}").touch()
rounds.end()
"""


@pytest.fixture
def environment():
    return {**os.environ, "PYTHONPATH": os.getcwd()}


def test_a_round_begins_when_it_is_its_turn(tmp_path, environment):
    folder = tmp_path / "one"
    player = Player("one", [sys.executable, "-c", PLAY, str(folder)], environment, 2, folder)
    try:
        player.play()
        time.sleep(0.05)
        assert (folder / "begun_0").exists()
        assert not (folder / "begun_1").exists()
        player.play()
        player.finish()
    finally:
        player.close()
    assert (folder / "begun_1").exists()
    assert len(player.seconds) == 2
    assert max(player.seconds) < 0.05  # waiting is not counted
    assert player.peak_bytes == 0 or player.peak_bytes > 1e6  # it may be gone before one looks


def test_who_fails_is_told_with_its_last_words(tmp_path, environment):
    player = Player("one", [sys.executable, "-c", "raise SystemExit('no luck')"], environment, 1, tmp_path / "one")
    try:
        with pytest.raises(RuntimeError, match=r"one did not end round 0:\nno luck"):
            player.play()
    finally:
        player.close()
