"""ExclusiveFL: only clients that can hold the whole model take part.

A baseline of the literature on weak clients (e.g. Liu et al., "No One Left Behind: Inclusive Federated Learning over
Heterogeneous Devices", KDD 2022).

Assumption: cohorts are drawn from all clients, so that every method sees the same ones; a round whose cohort has no
strong client changes nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lit_fed.algorithms.weak_clients import WeakClients, capacities_of, hand_out, prefixes
from lit_fed.core.aggregate import mean
from lit_fed.core.types import Client, ClientId, Server, Setting, Task, Update


class ExclusiveFL(WeakClients):
    """FedAvg over the strong clients."""

    def problems(self, setting: Setting) -> list[str]:
        """Someone must be strong enough."""
        found = super().problems(setting)
        if not found and max(capacities_of(self.init({}, setting)).values()) < setting.model.num_blocks:
            found.append(
                f"ExclusiveFL needs a client that holds all {setting.model.num_blocks} blocks, but "
                "`algorithm.capacities` has none. Use FedRA, which needs none."
            )
        return found

    def plan(self, server: Server, cohort: Sequence[Client]) -> dict[ClientId, Task]:
        """The whole model to those who can hold it; nothing to the others."""
        held, full = self.held(server, [client.id for client in cohort]), server.state["num_blocks"]
        return hand_out(server.adapter, prefixes({client: number for client, number in held.items() if number == full}))

    def merge(self, server: Server, updates: Iterable[Update]) -> Server:
        """Average over those who took part."""
        return replace(server, adapter=mean(updates, server.adapter, self.weights))
