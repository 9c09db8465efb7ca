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
from lit_fed.engine.evaluator import Evaluator
from lit_fed.engine.precision import Precision
from lit_fed.engine.run_folder import RunFolder
from lit_fed.engine.setup import attach_as_in, build, give_slot, place


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

    Raises:
        ConfigError: If `path` is no run folder with a checkpoint, or has no such client.
    """
    serving = _serving(RunFolder(path), algorithm, client, seed)
    build(module, fabric, seed)
    with isolated_rng(seed, "slots"):
        for slot in serving.adapters:
            if slot != GLOBAL:
                give_slot(module, slot)
    attach_as_in(module, serving.adapters[GLOBAL], seed)
    view = AdapterView(module)
    view.train_only(GLOBAL, None)
    place(module, fabric, precision)
    with kernels(view):
        return Evaluator(fabric, module, view).predict(serving, batches)


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
