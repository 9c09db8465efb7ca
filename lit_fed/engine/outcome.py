"""The end of a run: the module as an ordinary module again, adapters and summary in the run folder."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from lit_fed.algorithms.base import GLOBAL
from lit_fed.core.errors import ConfigError
from lit_fed.engine.result import Result
from lit_fed.engine.run import Run
from lit_fed.engine.served import save_serving
from lit_fed.engine.storage import file_name

if TYPE_CHECKING:
    from lit_fed.engine.federation import Federation


def finish(federation: "Federation", run: Run, setup_s: float) -> Result:
    """Write adapters and summary, leave the final global adapter in the module, and build the result."""
    info, progress = run.prepared.setting.model, run.progress
    initial = run.folder.initial()
    if not run.scorer.domains and not run.scorer.personal:  # nothing was left to do: the run had ended before
        run.scorer.score(run.server)
    metrics = run.scorer.metrics
    compared = run.scorer.compare(run.server)
    before = {
        name.replace("global/", "initial/"): v for name, v in initial["metrics"].items() if name.startswith("global/")
    }
    labels = run.prepared.data.allocation.labels
    summary: dict[str, Any] = {
        "schema": 1,
        "algorithm": type(federation.algorithm).__name__,
        "seed": federation.seed,
        "rounds": run.server.round,
        "num_clients": len(run.prepared.data.clients),
        "num_blocks": info.num_blocks,
        "label_names": list(labels.names) if labels is not None and labels.names is not None else None,
        "metrics": {**metrics, **before},
        "traffic": {"up_bytes": progress["up_bytes"], "down_bytes": progress["down_bytes"]},
        "trainable_parameters": info.trainable_parameters,
        "total_parameters": info.total_parameters,
        "seconds": {"setup": setup_s, "train": progress["train_s"], "evaluate": progress["evaluate_s"]},
        "peak_memory_bytes": run.peak_memory_bytes(),
        "state_digest": run.state_digest(),
    }
    serving = run.algorithm.serve(run.server, {})
    if run.fabric.is_global_zero:
        _save_adapters(run)
        if compared:
            run.folder.write_clients(compared)
        run.folder.write_summary(summary)
    run.scorer.evaluator.load(replace(serving, blocks=None))
    run.prepared.view.use(GLOBAL)
    run.prepared.view.train_only(GLOBAL, None)
    name = run.scorer.primary
    domains = {
        domain: {
            metric: (initial["metrics"].get(f"global/{metric}/{domain}"), value) for metric, value in scores.items()
        }
        for domain, scores in run.scorer.domains.items()
    }
    return Result(
        run.server,
        serving.adapters[GLOBAL],
        summary,
        run.folder.history,
        domains,
        _clients(run, initial),
        run.folder.path,
        name,
    )


def _clients(run: Run, initial: dict[str, Any]) -> dict[str, dict[str, Any]]:
    totals = run.folder.client_totals() if run.fabric.is_global_zero else {}
    nothing = {"up_bytes": 0, "down_bytes": 0, "seconds": 0.0}
    name = run.scorer.primary
    return {
        client.id: {
            "examples": client.num_examples,
            "before": initial["clients"].get(client.id, {}).get(name),
            "after": run.scorer.personal.get(client.id, {}).get(name),
            **totals.get(client.id, nothing),
        }
        for client in run.prepared.data.clients
    }


def _save_adapters(run: Run) -> None:
    """``adapters/global`` and, for clients that predict with something of their own, ``adapters/clients/<id>``."""
    root = run.folder.path / "adapters"
    save_serving(run.prepared.view, run.algorithm.serve(run.server, {}), root / "global")
    for client in run.prepared.setting.clients:
        if run.folder.private.has(client.id):
            serving = run.scorer.serving(run.server, client.id)
            save_serving(run.prepared.view, serving, root / "clients" / file_name(client.id))


@torch.no_grad()
def predictions(run: Run, client: str | None) -> list[Any]:
    """What ``predict_step`` returns, a batch each, with a client's serving or a new client's."""
    known = [c.id for c in run.prepared.data.clients]
    if client is not None and client not in known:
        raise ConfigError(f"Expected `client` to be one of {known[:12]}, but got {client!r}.")
    serving = run.scorer.serving(run.server, client) if client is not None else run.algorithm.serve(run.server, {})
    return run.scorer.evaluator.predict(serving, run.prepared.data.predict_loader())
