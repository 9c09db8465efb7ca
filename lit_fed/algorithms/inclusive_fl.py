r"""InclusiveFL: a client trains the first blocks of the model, and deep models teach the last block of shallow ones.

Liu et al., "No One Left Behind: Inclusive Federated Learning over Heterogeneous Devices" (KDD 2022).

======================================  ==================================================
paper                                   here
======================================  ==================================================
:math:`d_0 < d_1 < \dots`               ``depths``: the different capacities
:math:`\Delta_{d}`                      ``changes[d]``: mean change of the group of depth d
:math:`\beta`                           ``beta``
======================================  ==================================================

Each group of equal depth is averaged by itself. The last block of the group of depth :math:`d_i` then gets its share of
what the blocks it lacks learned in the next deeper group, a round ago (momentum distillation):

.. math:: \Delta_{d_i}[d_i] \leftarrow (1 - \beta)\, \Delta_{d_i}[d_i]
          + \beta\, \frac{1}{d_{i+1} - d_i} \sum_{l = d_i + 1}^{d_{i+1}} \Delta^{t-1}_{d_{i+1}}[l]

and a block is the mean of the groups that hold it, each counted once. ``distill=False`` is what the released code of
FedRA runs under this name: the plain mean of each block over the clients that hold it.

Assumption: a deeper group that sat out the last round teaches nothing.
Assumption: served is the model as deep as the deepest client: blocks that nobody can hold are left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from lit_fed.algorithms.base import GLOBAL, Serving
from lit_fed.algorithms.capacities import Capacities
from lit_fed.algorithms.weak_clients import WeakClients, capacities_of, hand_out, prefixes
from lit_fed.core.aggregate import Weights, mean
from lit_fed.core.names import block_of, in_block, restrict
from lit_fed.core.types import AdapterState, Client, ClientId, Private, Server, Setting, Task, Update


class InclusiveFL(WeakClients):
    """Prefixes of the model, averaged block by block over the depths that have the block.

    Args:
        capacities: How much of the model a client can hold: blocks (``6``), a fraction of them (``0.5``), or the memory
            of a training step (``"512 MB"``: what a block takes is measured). One for all, a list for the clients or
            for the domains in sorted order, or a mapping from client or domain.
        distill: Momentum distillation, as published; without it, the plain mean over holders.
        beta: Share of what comes from the deeper group, in [0, 1].
        shuffle_capacities: Deal a list to clients or domains in an order drawn with the seed, so that capacity does not
            always mean the same domain.
        dynamic: Redraw every round: each client of the cohort gets one of all clients' capacities, uniformly.
        weights: Within a group, ``"uniform"`` or ``"examples"``.
        local_steps: Optimizer steps of a client's turn, or
        local_epochs: its passes over the client's training data. Give exactly one; neither means one epoch.
    """

    def __init__(
        self,
        capacities: Capacities = 0.5,
        distill: bool = True,
        beta: float = 0.2,
        shuffle_capacities: bool = False,
        dynamic: bool = False,
        weights: Weights = "uniform",
        local_steps: int | None = None,
        local_epochs: int | None = None,
    ) -> None:
        super().__init__(capacities, shuffle_capacities, dynamic, weights, local_steps, local_epochs)
        self.distill, self.beta = distill, beta

    def problems(self, setting: Setting) -> list[str]:
        """`beta` is a share."""
        wrong = [] if 0 <= self.beta <= 1 else [f"Expected `algorithm.beta` to be in [0, 1], but got {self.beta}."]
        return super().problems(setting) + wrong

    def plan(self, server: Server, cohort: Sequence[Client]) -> dict[ClientId, Task]:
        """The first blocks, as many as a client can hold."""
        return hand_out(server.adapter, prefixes(self.held(server, [client.id for client in cohort])))

    def merge(self, server: Server, updates: Iterable[Update]) -> Server:
        """Average within depths, let deep groups teach shallow ones, then average over depths."""
        updates = list(updates)
        if not self.distill or not updates:
            return replace(server, adapter=mean(updates, server.adapter, self.weights))
        held = self.held(server, [update.client for update in updates])
        depths = sorted(set(capacities_of(server).values()))
        changes: dict[int, dict[str, Tensor]] = {}
        for depth in sorted(set(held.values())):
            old = restrict(server.adapter, range(depth))
            new = mean([update for update in updates if held[update.client] == depth], old, self.weights)
            changes[depth] = {name: value - old[name] for name, value in new.items()}
        lessons: Mapping[str, AdapterState] = server.state.get("lessons", {})
        taught = {d: self._taught(change, d, lessons.get(str(d), {})) for d, change in changes.items()}
        adapter = {
            name: _moved(value, [c[name] for c in taught.values() if name in c])
            for name, value in server.adapter.items()
        }
        learned = {
            str(shallow): _lesson(changes[deep], shallow, deep) for shallow, deep in pairwise(depths) if deep in changes
        }
        return replace(server, adapter=adapter, state={**server.state, "lessons": learned})

    def serve(self, server: Server, private: Private) -> Serving:
        """As deep as the deepest client."""
        return Serving({GLOBAL: server.adapter}, blocks=tuple(range(max(capacities_of(server).values()))))

    def _taught(self, change: AdapterState, depth: int, lesson: AdapterState) -> dict[str, Tensor]:
        """A group's change, its last block mixed with what the next deeper group learned a round ago."""
        taught = dict(change)
        for name, value in lesson.items():
            if name in taught:
                taught[name] = (1 - self.beta) * taught[name] + self.beta * value
        return taught


def _lesson(change: AdapterState, shallow: int, deep: int) -> dict[str, Tensor]:
    """Mean change of the blocks that the shallow group lacks, by the names of its last block."""
    lesson = {}
    for name in [name for name in change if block_of(name) == shallow]:
        across = [change[in_block(name, block)] for block in range(shallow, deep) if in_block(name, block) in change]
        lesson[in_block(name, shallow - 1)] = torch.stack(across).mean(0)
    return lesson


def _moved(value: Tensor, changes: Sequence[Tensor]) -> Tensor:
    """A value after the mean of the groups' changes."""
    return value + torch.stack(list(changes)).mean(0) if changes else value
