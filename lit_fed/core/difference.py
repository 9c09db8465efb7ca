"""In which settings two configurations differ."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["differences", "listed"]

_MOST = 12


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """``"federation.rounds: 10 there, 20 here"`` for every setting that is not the same, sorted; `None` is absent."""
    old, new = _flat(there), _flat(here)
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return [f"{key}: {old.get(key)!r} there, {new.get(key)!r} here" for key in keys]


def listed(lines: Sequence[str]) -> str:
    """The lines below one another, indented, each after a line break; the first dozen, and how many more there are."""
    more = f"\n  and {len(lines) - _MOST} more" if len(lines) > _MOST else ""
    return "".join(f"\n  {line}" for line in lines[:_MOST]) + more


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {k: v for key, child in value.items() for k, v in _flat(child, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): value}
