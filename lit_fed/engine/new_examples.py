"""Predicting what a run's data never held: with the run folder alone, wherever that data is."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric import Fabric

from lit_fed.adapters.state import AdapterView
from lit_fed.algorithms.base import GLOBAL, Algorithm, Serving
from lit_fed.core.errors import ConfigError
from lit_fed.core.seeding import isolated_rng
from lit_fed.engine.build import attach_as_in, build, give_slot, place
from lit_fed.engine.evaluator import Evaluator
from lit_fed.engine.precision import Precision
from lit_fed.engine.run_folder import RunFolder
from lit_fed.engine.served import is_serving, load_serving


def predict_new(
    fabric: Fabric,
    module: pl.LightningModule,
    batches: Iterable[Any],
    algorithm: Algorithm,
    path: Path,
    client: str | None,
    precision: Precision,
    seed: int,
    kernels: Callable[[AdapterView], AbstractContextManager[None]],
) -> list[Any]:
    """What ``predict_step`` returns with a client's serving, or a new client's (`None`), a batch each.

    Args:
        fabric: Where it runs.
        module: The module the run was made with.
        batches: What its ``predict_step`` takes.
        algorithm: The run's; not needed for an export.
        path: The run folder, or an export of it.
        client: Whose serving; none with an export.
        precision: The run's.
        seed: The run's.
        kernels: A scope with the run's kernels for bfloat16.

    Raises:
        ConfigError: If `path` is neither an export nor a run folder with a checkpoint, or has no such client.
    """
    if is_serving(path):
        serving = _exported(fabric, module, path, client, seed)
    else:
        serving = _restored(fabric, module, algorithm, path, client, seed)
    view = AdapterView(module)
    view.train_only(GLOBAL, None)
    place(module, fabric, precision)
    with kernels(view):
        return Evaluator(fabric, module, view).predict(serving, batches)


def _exported(fabric: Fabric, module: pl.LightningModule, path: Path, client: str | None, seed: int) -> Serving:
    if client is not None:
        raise ConfigError(
            f"Expected no `client` with an export, which is what one client predicts with, but got {client!r}. Leave"
            " it out, or give the run folder."
        )
    return load_serving(module, fabric, seed, path)


def _restored(
    fabric: Fabric, module: pl.LightningModule, algorithm: Algorithm, path: Path, client: str | None, seed: int
) -> Serving:
    serving = _serving(RunFolder(path), algorithm, client, seed)
    build(module, fabric, seed)
    with isolated_rng(seed, "slots"):
        for slot in serving.adapters:
            if slot != GLOBAL:
                give_slot(module, slot)
    attach_as_in(module, serving.adapters[GLOBAL], seed)
    return serving


def _serving(folder: RunFolder, algorithm: Algorithm, client: str | None, seed: int) -> Serving:
    found = folder.checkpoints.load()
    if found is None:
        raise ConfigError(f"Expected `run` to be the folder of a run, but {folder.path} has no checkpoints.")
    known = folder.client_ids()
    if client is not None and client not in known:
        raise ConfigError(f"Expected `client` to be one of {list(known[:12])}, but got {client!r}.")
    server = replace(found.server, seed=seed)
    alone = client is not None and not algorithm.pools_clients
    return algorithm.serve(server, folder.private.get(str(client), server.round) if alone else {})
