"""jsonargparse's nested messages as one line that names the key, what it may be, and what it was."""

import re
from collections.abc import Iterable
from importlib import import_module
from inspect import isabstract
from typing import Any, get_args

from jsonargparse import ArgumentParser

from lit_fed.cli.suggest import choose, did_you_mean

PACKAGES = ("lit_fed.", "flwr_datasets.", "lightning.")  # whose classes are offered by name


def explain(message: str, parser: ArgumentParser) -> str:
    """Rewrite an error of `parser`."""
    head, *inside = message.split("Problem with given class_path ")
    keys = re.findall(r'Parser key "([^"]+)"', head)[:1]
    classes = [re.match(r"'([^']+)'", part)[1] for part in inside]  # type: ignore[index]
    for part in inside:
        keys += re.findall(r'Parser key "([^"]+)"', part)
    key, last = ".".join(keys), inside[-1] if inside else head

    if match := re.search(r"Option '([^']+)' is not accepted", last):
        name = match[1]
        if not classes:
            return _unknown(name, name, _top(parser), _names(parser))
        if name in ("class_path", "init_args"):
            return f"Expected `{key}` to hold `class_path` and `init_args` alone. Put its settings under `init_args`."
        accepted = _accepted(classes[-1])
        return _unknown(f"{key}.{name}", name, accepted, accepted)
    if match := re.search(r"Group '([^']+)' does not accept option '([^']+)'", message):
        return _in_group(match[1], match[2], parser)
    if match := re.search(r"unrecognized arguments: (\S+)", message):
        group, _, name = match[1].lstrip("-").partition("=")[0].partition(".")
        if name and group in _top(parser):
            return _in_group(group, name, parser)
        return _unknown(match[1], match[1].lstrip("-"), _top(parser), _names(parser))
    if match := re.search(r"arguments? (?:are|is) required: (.+)", last):
        missing = ", ".join(f"`{key}.{name}`" if key else f"`{name}`" for name in match[1].strip().split(", "))
        return f"Expected {missing} to be given, but got nothing."
    if match := re.search(r"Expected a dot import path string: (\S+)", last):
        return f"Expected `{key}` to be {_class_of(match[1], key, parser)}"
    if classes and (match := re.search(r"(No module named \S+|cannot import .+|.* has no attribute \S+)", last)):
        return f"Expected `{key}` to be a class that can be imported, but got {classes[-1]!r}: {match[1].strip()}."
    got = re.search(r"Given value: (.*)", last)
    if got and ("does not correspond to a subclass" in last or "is abstract" in last):
        return f"Expected `{key}` to be {_class_of(got[1], key, parser)}"
    if match := re.search(r"Expected an? (.+?)\. Got value: (.*)", last):
        return f"Expected `{key}` to be {_type(match[1])}, but got {match[2]!r}."
    if got and (match := re.search(r"Subtypes: \[(.+)\]", last)):
        return f"Expected `{key}` to be {_type(match[1])}, but got {got[1]!r}."
    if match := re.search("Unable to load config '(.*)'", last):
        return f"Expected `{key}` to hold settings by name, or to be a YAML file of them, but got {match[1]!r}."
    if match := re.search("File does not exist: '(.*)'", last):
        return f"Expected `{key}` to be a file, but {match[1]} does not exist."
    return " ".join(message.split())


def _unknown(key: str, name: str, choices: Iterable[str], everywhere: Iterable[str]) -> str:
    close = did_you_mean(name.rpartition(".")[2], choices)
    if not close:  # perhaps a setting of a group, written outside of it
        inside = sorted(other for other in everywhere if other.endswith(f".{name}"))
        close = f" Did you mean {inside[0]!r}?" if inside else did_you_mean(name, choices)
    return f"There is no setting `{key}`.{close} Settings here are {', '.join(sorted(choices))}."


def _in_group(group: str, name: str, parser: ArgumentParser) -> str:
    prefix = f"{group}."
    choices = {other.removeprefix(prefix).partition(".")[0] for other in _names(parser) if other.startswith(prefix)}
    return _unknown(f"{group}.{name}", name, choices, choices)


def _names(parser: ArgumentParser) -> set[str]:
    """Every setting by its full name."""
    hidden = {"help", "print_config"}
    return {a.dest for a in parser._actions if a.dest not in hidden and not a.dest.endswith(".help")}


def _top(parser: ArgumentParser) -> set[str]:
    return {name.partition(".")[0] for name in _names(parser)}


def _accepted(class_path: str) -> set[str]:
    """The arguments of a class, inherited ones included, as jsonargparse sees them."""
    probe = ArgumentParser(exit_on_error=False)
    return set(probe.add_class_arguments(_import(class_path), fail_untyped=False))


def _class_of(got: str, key: str, parser: ArgumentParser) -> str:
    """The classes that can be chosen by name for a setting, and what was given in their place."""
    hint = next((getattr(action, "_typehint", None) for action in parser._actions if action.dest == key), None)
    bases = [kind for kind in _alternatives(hint) if isinstance(kind, type)]
    names = {sub.__name__ for base in bases for sub in _subclasses(base) if sub.__module__.startswith(PACKAGES)}
    return "a class path, or " + choose(got, names) if names else f"a class path, but got {got!r}."


def _alternatives(hint: Any) -> list[Any]:
    """The types in a hint: ``list[A] | B | None`` has A, B and None's."""
    inside = get_args(hint)
    return [kind for part in inside for kind in _alternatives(part)] if inside else [hint]


def _subclasses(base: type[Any]) -> Iterable[type[Any]]:
    if base is object or base.__module__ == "builtins":
        return
    for sub in base.__subclasses__():
        if not isabstract(sub) and not sub.__name__.startswith("_"):
            yield sub
        yield from _subclasses(sub)


def _import(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def _type(text: str) -> str:
    """``<class 'int'>`` as ``int``, ``typing.Literal['a', 'b']`` as ``'a' or 'b'``, several joined by "or"."""
    text = re.sub(r"<class '([^']+)'>", r"\1", text).replace("typing.", "").replace("NoneType", "null")
    if match := re.fullmatch(r"Literal\[(.+)\]", text):
        text = match[1]
    return text.replace(", ", " or ")
