"""What makes two runs the same run."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from lit_fed.algorithms.base import Algorithm
from lit_fed.core.tree import digest
from lit_fed.engine.setup import Prepared

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def identity(
    prepared: Prepared, algorithm: Algorithm, settings: Mapping[str, Any], config: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What must be the same for two runs to give the same result, as JSON values."""
    hparams = {k: v for k, v in prepared.module.hparams.items() if _is_plain(v)}
    known = {"class": type(prepared.module).__qualname__, **hparams}
    options = {k: asdict(v) if _is_options(v) else v for k, v in vars(algorithm).items()}
    own = {k: v for k, v in options.items() if _is_plain(v)}
    info = prepared.setting.model
    held = [[client.id, client.num_examples] for client in prepared.setting.clients]
    return {
        "seed_everything": settings["seed"],
        "federation": {k: v for k, v in settings.items() if k != "seed"},
        "algorithm": {"class": type(algorithm).__qualname__, "budget": vars(algorithm.budget), **own},
        "model": config["model"] if config and "model" in config else known,
        "data": config["data"] if config and "data" in config else {},
        "clients": {"number": len(held), "digest": digest({"examples": held})},
        "parameters": {"total": info.total_parameters, "trainable": info.trainable_parameters},
    }


def _is_options(value: Any) -> TypeGuard["DataclassInstance"]:
    return is_dataclass(value) and not isinstance(value, type)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, bool | int | float | str)
