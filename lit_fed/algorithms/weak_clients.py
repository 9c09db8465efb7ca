"""What methods for weak clients share: everyone holds some of the blocks, and trains the adapter on those."""

from collections.abc import Iterable, Mapping, Sequence

import torch

from lit_fed.algorithms import capacities
from lit_fed.algorithms.base import Algorithm, Learner, report
from lit_fed.algorithms.capacities import Capacities
from lit_fed.core.aggregate import Weights
from lit_fed.core.names import restrict
from lit_fed.core.seeding import generator
from lit_fed.core.types import AdapterState, ClientId, Private, Server, Setting, Task, Update


class WeakClients(Algorithm):
    """Clients that hold only so many blocks of the model; subclasses say which, and what the server makes of it.

    Args:
        capacities: How much of the model a client can hold: blocks (``6``), a fraction of them (``0.5``), or the memory
            of a training step (``"512 MB"``: what a block takes is measured). One for all, a list for the clients or
            for the domains in sorted order, or a mapping from client or domain.
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
        shuffle_capacities: bool = False,
        dynamic: bool = False,
        weights: Weights = "uniform",
        local_steps: int | None = None,
        local_epochs: int | None = None,
    ) -> None:
        super().__init__(local_steps, local_epochs)
        self.capacities, self.shuffle_capacities, self.dynamic = capacities, shuffle_capacities, dynamic
        self.weights: Weights = weights

    @property
    def measures_memory(self) -> bool:
        """Only a memory budget needs to know what a block takes."""
        return capacities.needs_memory(self.capacities)

    def problems(self, setting: Setting) -> list[str]:
        """Capacities fit the model and the clients."""
        return super().problems(setting) + capacities.problems(self.capacities, setting)

    def init(self, adapter: AdapterState, setting: Setting) -> Server:
        """The server knows what everybody can hold."""
        held = capacities.resolve(self.capacities, setting, self.shuffle_capacities)
        return Server(
            0,
            adapter,
            {
                "num_blocks": setting.model.num_blocks,
                "capacities": [[client, number] for client, number in held.items()],
            },
        )

    def held(self, server: Server, clients: Iterable[ClientId]) -> dict[ClientId, int]:
        """Client -> blocks it can hold in this round."""
        known = capacities_of(server)
        if not self.dynamic:
            return {client: known[client] for client in clients}
        choices = [known[client] for client in sorted(known)]
        drawn = {client: generator(server.seed, "capacities", server.round, client) for client in clients}
        return {client: choices[int(torch.randint(len(choices), (), generator=g))] for client, g in drawn.items()}

    def local(self, learner: Learner, task: Task, private: Private) -> tuple[Update, Private]:
        """Train the blocks that are there, and what is in no block; the others do not run."""
        learner.select_blocks(task.blocks)
        learner.load(task.adapter)
        fit = learner.fit(steps=self.budget.steps, epochs=self.budget.epochs)
        return report(learner, learner.state(), fit), private


def capacities_of(server: Server) -> dict[ClientId, int]:
    """Client -> blocks it can hold, as configured."""
    return dict(server.state["capacities"])


def hand_out(adapter: AdapterState, rows: Mapping[ClientId, Sequence[int]]) -> dict[ClientId, Task]:
    """A task for each client: its blocks, and the part of the adapter that concerns them."""
    return {client: Task(restrict(adapter, blocks), blocks=tuple(blocks)) for client, blocks in rows.items()}


def prefixes(held: Mapping[ClientId, int]) -> dict[ClientId, tuple[int, ...]]:
    """The first blocks of the model, as many as each client can hold."""
    return {client: tuple(range(number)) for client, number in held.items()}
