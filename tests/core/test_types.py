from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from lit_fed.core.types import Client, FitResult, Server, Task, Update

STATE = {"w": torch.zeros(1)}


@pytest.mark.parametrize(
    ("value", "name"),
    [(Client("c", 1), "id"), (Server(0, STATE), "round"), (Task(STATE), "blocks"), (Update("c", STATE, 1), "adapter")],
)
def test_what_crosses_a_seam_is_immutable(value: object, name: str) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(value, name, None)


def test_replace_gives_a_new_server_and_defaults_are_not_shared() -> None:
    server = Server(0, STATE)
    assert replace(server, round=1).round == 1
    assert server.round == 0
    assert FitResult(1, 1, 0.0).metrics is not FitResult(1, 1, 0.0).metrics
