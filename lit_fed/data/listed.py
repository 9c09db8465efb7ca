"""Text files that list pictures and their labels."""

from pathlib import Path
from typing import NamedTuple

__all__ = ["Listed", "read_list"]


class Listed(NamedTuple):
    """What a list names."""

    files: list[str]
    labels: list[int]


def read_list(path: Path, num_labels: int, num_listed_labels: int) -> tuple[Listed, list[str]]:
    """Reads a list: a path, which may hold spaces, and a label in each line; blank lines count for nothing.

    Args:
        path: The list, in UTF-8.
        num_labels: Pictures with labels from this on are left out.
        num_listed_labels: Labels from this on are wrong.

    Returns:
        The pictures that are used, and what is wrong with the list: a sentence for each kind of wrong line.
    """
    found, unreadable, unknown = Listed([], []), [], []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        return found, [f"Expected '{path}' to be a text in UTF-8, but got something else: {error}."]
    for number, line in enumerate(lines, start=1):
        words = line.rsplit(maxsplit=1)
        if not words:
            continue
        if len(words) < 2 or not words[1].isdecimal():
            unreadable.append((number, line.strip()))
        elif (label := int(words[1])) >= num_listed_labels:
            unknown.append((number, label))
        elif label < num_labels:
            found.files.append(words[0].strip())
            found.labels.append(label)
    problems = []
    if unreadable:
        number, text = unreadable[0]
        problems.append(
            f"Expected each line of '{path}' to be a path and a label from 0 on, but got {text!r} in line {number}"
            f"{_others(unreadable)}. Correct the list."
        )
    if unknown:
        number, label = unknown[0]
        problems.append(
            f"Expected the labels of '{path}' to be from 0 to {num_listed_labels - 1}, but got {label} in line {number}"
            f"{_others(unknown)}. Correct the list, or `data.source.num_listed_labels`."
        )
    return found, problems


def _others(wrong: list[tuple[int, str]] | list[tuple[int, int]]) -> str:
    return f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
