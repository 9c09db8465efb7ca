"""Pure functions over adapter states and over trees of tensors and JSON values."""

import json
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from lit_fed.core.types import AdapterState, Tree

SEPARATOR = "/"


def map_states(function: Callable[..., Tensor], state: AdapterState, *others: AdapterState) -> dict[str, Tensor]:
    """Apply `function` name by name; every state must have the names of the first."""
    return {name: function(tensor, *(other[name] for other in others)) for name, tensor in state.items()}


def flatten(tree: Tree) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split a tree into its tensors and its JSON values, each by path (``"a/b/c"``).

    Returns:
        Tensors and values by path. An empty mapping is kept as the value ``{}``, so `unflatten` gives it back.

    Raises:
        TypeError: If a key is not a string without ``/``, or a leaf is neither a tensor nor a JSON value.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for path, leaf in _leaves(tree, ()):
        if isinstance(leaf, Tensor):
            tensors[path] = leaf
        else:
            try:
                values[path] = json.loads(json.dumps(leaf))
            except TypeError as error:
                raise TypeError(f"Expected `{path}` to be a tensor or a JSON value, but got {type(leaf)}.") from error
    return tensors, values


def unflatten(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in [*tensors.items(), *values.items()]:
        *parents, last = path.split(SEPARATOR)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def _leaves(node: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for key, child in node.items():
        if not isinstance(key, str) or SEPARATOR in key:
            raise TypeError(f"Expected keys to be strings without {SEPARATOR!r}, but got {key!r}.")
        if isinstance(child, Mapping) and child:
            yield from _leaves(child, (*path, key))
        else:
            yield SEPARATOR.join((*path, key)), child


def digest(tree: Tree) -> str:
    """blake2b over sorted paths, shapes, dtypes and bytes: equal digest means equal tree, whoever computed it."""
    tensors, values = flatten(tree)
    hasher = blake2b(digest_size=16)
    for path in sorted(tensors):
        tensor = tensors[path].detach().cpu().contiguous()
        hasher.update(f"{path}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    hasher.update(json.dumps(values, sort_keys=True).encode())
    return hasher.hexdigest()


def num_bytes(tree: Tree) -> int:
    """Bytes of the tensors of a tree (what an exchange of it costs, but for a few bytes of names)."""
    return sum(tensor.numel() * tensor.element_size() for tensor in flatten(tree)[0].values())


def all_finite(state: AdapterState) -> bool:
    """Whether every entry of every tensor is finite."""
    tensors = [tensor for tensor in state.values() if tensor.numel()]
    # The largest magnitude of each: one call for all, and NaN and infinity show in it.
    return not tensors or bool(torch.stack(torch._foreach_norm(tensors, ord=float("inf"))).isfinite().all())
