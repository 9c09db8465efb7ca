r"""FedRA: each round weak clients get random blocks of the model, and together they tune all of it.

Su et al., "FedRA: A Random Allocation Strategy for Federated Tuning to Unleash the Power of Heterogeneous Clients"
(ECCV 2024); steps as in the authors' released code.

=============================  =====================================================
paper                          here
=============================  =====================================================
:math:`L`                      blocks of the model
:math:`c_k`                    ``held[client]``, from ``capacities``
:math:`A^t \in \{0,1\}^{N L}`  ``rows``: client -> its blocks, ascending
:math:`S_t`                    ``cohort``
:math:`\phi_l`                 LoRA of block l: names under ``blocks.l.``
:math:`h`                      the head and all else that is in no block
=============================  =====================================================

.. math:: \phi_l^{t+1} = \frac{1}{n_l} \sum_{k \in S_t, A_{kl} = 1} \phi_{k,l}, \quad n_l = \sum_{k \in S_t} A^t_{kl};
          \qquad h^{t+1} = \frac{1}{|S_t|} \sum_{k \in S_t} h_k

A client runs its blocks in order with the gaps closed: a block that is not there is the identity. Served is the whole
model. A and B are averaged apart.

Assumption: a block that nobody drew keeps its adapter (``coverage="keep"``, the released behaviour; the paper speaks of
options without saying which was used).
Assumption: rows are drawn for the cohort only; drawing them for absent clients too changes no distribution.
Assumption: dynamic capacities are drawn uniformly from those of all clients (the released code has none).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lit_fed.algorithms.capacities import Capacities
from lit_fed.algorithms.weak_clients import WeakClients, capacities_of, hand_out
from lit_fed.core.aggregate import Weights, mean
from lit_fed.core.allocation import Coverage, allocate
from lit_fed.core.names import block_of
from lit_fed.core.seeding import generator
from lit_fed.core.types import AdapterState, Client, ClientId, Server, Setting, Task, Update


class FedRA(WeakClients):
    """Random blocks for every client, anew in every round; each block is averaged over those who held it.

    Args:
        capacities: How much of the model a client can hold: blocks (``6``), a fraction of them (``0.5``), or the memory
            of a training step (``"512 MB"``: what a block takes is measured). One for all, a list for the clients or
            for the domains in sorted order, or a mapping from client or domain.
        coverage: What becomes of a block that nobody drew: ``"keep"`` its adapter as it was; ``"none"``: no adapter,
            the block as it was at the start; ``"repair"`` rows until every block is held; ``"deal"`` all blocks out
            before places are filled at random.
        pinned: Blocks that everyone holds in every round, from 0; the others are drawn for the places that are left.
            The published method pins none.
        shuffle_capacities: Deal a list to clients or domains in an order drawn with the seed, so that capacity does not
            always mean the same domain.
        dynamic: Redraw every round: each client of the cohort gets one of all clients' capacities, uniformly.
        weights: ``"uniform"`` (the authors' code) or ``"examples"``.
        local_steps: Optimizer steps of a client's turn, or
        local_epochs: its passes over the client's training data. Give exactly one; neither means one epoch.
    """

    def __init__(
        self,
        capacities: Capacities = 0.5,
        coverage: Coverage = "keep",
        pinned: Sequence[int] = (),
        shuffle_capacities: bool = False,
        dynamic: bool = False,
        weights: Weights = "uniform",
        local_steps: int | None = None,
        local_epochs: int | None = None,
    ) -> None:
        super().__init__(capacities, shuffle_capacities, dynamic, weights, local_steps, local_epochs)
        self.coverage: Coverage = coverage
        self.pinned = tuple(sorted(pinned))

    def problems(self, setting: Setting) -> list[str]:
        """Everyone has a place beside the pinned blocks; a promise to cover all holds for the weakest cohort."""
        found, blocks = super().problems(setting), setting.model.num_blocks
        if found:
            return found
        if len({*self.pinned} & {*range(blocks)}) < len(self.pinned):
            return [f"Expected `algorithm.pinned` to be different blocks, 0 to {blocks - 1}, but got {self.pinned}."]
        held = sorted(capacities_of(super().init({}, setting)).values())
        if held[0] <= len(self.pinned):
            return [
                f"Expected `algorithm.pinned` to leave everyone a place for a block that is drawn, but it has "
                f"{len(self.pinned)}, and the weakest client holds {held[0]}. Pin fewer, or raise the capacities."
            ]
        weakest = held[:1] * setting.cohort_size if self.dynamic else held[: setting.cohort_size]
        free, places = blocks - len(self.pinned), sum(weakest) - len(self.pinned) * len(weakest)
        if self.coverage in ("repair", "deal") and places < free:
            found.append(
                f"`algorithm.coverage: {self.coverage}` needs room for all {free} blocks in every cohort, but the "
                f"weakest cohort of {setting.cohort_size} holds {places}. Use `keep`, or larger capacities or cohorts."
            )
        return found

    def init(self, adapter: AdapterState, setting: Setting) -> Server:
        """The server; to drop adapters it must remember how they began."""
        server = super().init(adapter, setting)
        return replace(server, state={**server.state, "start": adapter}) if self.coverage == "none" else server

    def plan(self, server: Server, cohort: Sequence[Client]) -> dict[ClientId, Task]:
        """Draw the allocation matrix of the round, and hand out what its rows say."""
        free = [block for block in range(server.state["num_blocks"]) if block not in self.pinned]
        places = {k: held - len(self.pinned) for k, held in self.held(server, [k.id for k in cohort]).items()}
        rows = allocate(places, len(free), generator(server.seed, "allocation", server.round), self.coverage)
        return hand_out(server.adapter, {k: sorted([*self.pinned, *(free[i] for i in row)]) for k, row in rows.items()})

    def merge(self, server: Server, updates: Iterable[Update]) -> Server:
        """Average each block over its holders, all else over the cohort."""
        updates = list(updates)
        old = server.adapter
        if self.coverage == "none":
            start = server.state["start"]
            old = {name: tensor if block_of(name) is None else start[name] for name, tensor in old.items()}
        return replace(server, adapter=mean(updates, old, self.weights))
