r"""AllSmall: everyone, and the served model too, has as many blocks as the weakest client can hold.

The baseline of that name in the code of FedRA (Su et al., ECCV 2024): the first :math:`\min_k c_k` pretrained blocks,
then norm and head.

Assumption: with dynamic capacities the weakest is that of all clients, not of the round.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lit_fed.algorithms.base import GLOBAL, Serving
from lit_fed.algorithms.weak_clients import WeakClients, capacities_of, hand_out
from lit_fed.core.aggregate import mean
from lit_fed.core.types import Client, ClientId, Private, Server, Task, Update


class AllSmall(WeakClients):
    """FedAvg of the sub-model that all clients can hold."""

    def plan(self, server: Server, cohort: Sequence[Client]) -> dict[ClientId, Task]:
        """The same first blocks for everyone."""
        return hand_out(server.adapter, {client.id: self._blocks(server) for client in cohort})

    def merge(self, server: Server, updates: Iterable[Update]) -> Server:
        """Average over the cohort."""
        return replace(server, adapter=mean(updates, server.adapter, self.weights))

    def serve(self, server: Server, private: Private) -> Serving:
        """The small model."""
        return Serving({GLOBAL: server.adapter}, blocks=self._blocks(server))

    def _blocks(self, server: Server) -> tuple[int, ...]:
        return tuple(range(min(capacities_of(server).values())))
