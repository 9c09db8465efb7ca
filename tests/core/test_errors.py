import pickle

import pytest

from lit_fed.core.errors import ClientFailure, ConfigError, LitFedError, StateMismatchError


def test_one_problem_is_the_message() -> None:
    error = ConfigError("Expected `rounds` to be >= 1, but got 0.")
    assert str(error) == "Expected `rounds` to be >= 1, but got 0."
    assert error.problems == (str(error),)


def test_all_problems_at_once_numbered() -> None:
    assert str(ConfigError(["one.", "two."])) == "2 settings need attention:\n  1. one.\n  2. two."


def test_client_failure_says_who_when_and_where() -> None:
    error = ClientFailure("c3", 4, "local", "the loss is nan.")
    assert str(error) == "Client 'c3' failed in round 4 (local): the loss is nan."


@pytest.mark.parametrize(
    "error", [ConfigError(["a", "b"]), ConfigError("a"), ClientFailure("c", 1, "update", "r"), StateMismatchError("s")]
)
def test_errors_survive_the_trip_between_processes(error: LitFedError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
