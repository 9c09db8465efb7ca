"""What was meant: the end of an error message about a name that is none of those there are."""

from collections.abc import Iterable
from difflib import get_close_matches

MOST = 24  # names that a message lists


def choose(got: str, choices: Iterable[str]) -> str:
    """``one of 'a', 'b', but got 'c'. Did you mean 'b'?``; ``but got 'c'.`` if there are no choices to show."""
    names = sorted(choices)
    listed = f"one of {', '.join(names[:MOST])}{', ...' if len(names) > MOST else ''}, " if names else ""
    return f"{listed}but got {got!r}.{did_you_mean(got, names)}"


def did_you_mean(got: str, choices: Iterable[str]) -> str:
    """`` Did you mean 'b'?``, or nothing if no choice is close."""
    close = get_close_matches(got, sorted(choices), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
