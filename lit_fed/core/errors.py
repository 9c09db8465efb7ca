"""The few exceptions lit_fed raises on purpose."""

from collections.abc import Sequence


class LitFedError(Exception):
    """Base of every error that lit_fed raises on purpose."""


class ConfigError(LitFedError):
    """One or more settings are wrong; raised once, before work starts, with all problems found.

    Args:
        problems: One sentence each, in the words of the configuration key, with the way out.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        if len(self.problems) == 1:
            message = self.problems[0]
        else:
            lines = "".join(f"\n  {i}. {problem}" for i, problem in enumerate(self.problems, start=1))
            message = f"{len(self.problems)} settings need attention:{lines}"
        super().__init__(message)

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[tuple[str, ...]]]:
        """Survive the trip between processes (the message alone would not rebuild `problems`)."""
        return type(self), (self.problems,)


class StateMismatchError(LitFedError):
    """A state does not fit where it is to be loaded: names, shapes, or a damaged file."""


class ClientFailure(LitFedError):  # noqa: N818 - it happens, and policy `drop` goes on
    """A client could not finish its turn.

    Args:
        client: The client's id.
        round: The round, from 0.
        stage: What it was doing: ``"local"``, ``"update"`` (it sent something unusable) or ``"evaluate"``.
        reason: What went wrong, in one sentence.
    """

    def __init__(self, client: str, round: int, stage: str, reason: str) -> None:
        self.client, self.round, self.stage, self.reason = client, round, stage, reason
        super().__init__(f"Client {client!r} failed in round {round} ({stage}): {reason}")

    def __reduce__(self) -> tuple[type["ClientFailure"], tuple[str, int, str, str]]:
        """Survive the trip between processes."""
        return type(self), (self.client, self.round, self.stage, self.reason)
