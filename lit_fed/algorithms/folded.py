"""What methods share that fold matrices into the frozen weights: the server adds them up, and hands out the sum.

Deltas are in the units of the product BA (`lit_fed.core.names`), so LoRA's scaling plays no part here.

A client keeps nothing between rounds and has the original frozen weights, so a task carries the whole sum, dense: m x n
numbers for a layer of that shape, however small the rank. That is what is counted. A client that keeps its folded
weights would need what the last round added, from which each method says what that is.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lit_fed.algorithms.base import GLOBAL, Learner, Serving
from lit_fed.core.names import delta_of, is_delta
from lit_fed.core.products import Product, aggregation_error, product
from lit_fed.core.rank import pairs
from lit_fed.core.types import AdapterState, ClientId, Server, Task


def with_deltas(tasks: Mapping[ClientId, Task], server: Server) -> dict[ClientId, Task]:
    """Tasks that also carry what has been folded so far."""
    deltas = deltas_of(server)
    return {client: replace(task, adapter={**task.adapter, **deltas}) for client, task in tasks.items()}


def unpack(learner: Learner, task: Task) -> Task:
    """Fold what a task carries into the frozen weights; returns the rest of it."""
    learner.fold({name: tensor for name, tensor in task.adapter.items() if is_delta(name)})
    return replace(task, adapter={name: tensor for name, tensor in task.adapter.items() if not is_delta(name)})


def deltas_of(server: Server) -> AdapterState:
    """What has been folded so far."""
    deltas: AdapterState = server.state.get("deltas", {})
    return deltas


def fold_rest(server: Server, adapter: AdapterState, exact: Mapping[str, Product]) -> Server:
    """The server with a new adapter, and in the frozen weights what that adapter lacks of the exact mean.

    Args:
        server: The server before the round.
        adapter: What the next round starts from.
        exact: Layer -> the exact mean of the clients' products.
    """
    old, factors = deltas_of(server), pairs(adapter)
    start = {layer: product(pair) for layer, pair in factors.items()}
    new: dict[str, Tensor] = {}
    added: dict[str, Tensor] = {}
    for layer, mean in exact.items():
        a, name = factors[layer][0], delta_of(layer)
        rest = mean.minus(start[layer]).dense()
        before = old[name].flatten(1).double() if name in old else torch.zeros_like(rest)
        new[name] = (before + rest).to(a.dtype).reshape(len(rest), *a.shape[1:])
        added[layer] = new[name].flatten(1).double() - before
    metrics = {"aggregation_error": aggregation_error(start, exact, added)}
    return replace(server, adapter=adapter, state={**server.state, "deltas": new}, metrics=metrics)


def serve_folded(server: Server) -> Serving:
    """The global adapter on top of the folded weights."""
    return Serving({GLOBAL: server.adapter}, folded=deltas_of(server))
