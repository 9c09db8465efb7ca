"""Who takes part in a round, and which process does whose work."""

from collections.abc import Mapping, Sequence

import torch

from lit_fed.core.seeding import generator
from lit_fed.core.types import Client, ClientId


def cohort_size(num_clients: int, cohort: int | float) -> int:
    """Clients of a round: `cohort` itself if it is an int, else that fraction of all, rounded, at least one."""
    return cohort if isinstance(cohort, int) else max(1, round(cohort * num_clients))


def sample_cohort(clients: Sequence[Client], cohort: int | float, seed: int, round: int) -> list[Client]:
    """Draw the cohort of a round, uniformly and without replacement.

    Args:
        clients: All registered clients.
        cohort: A number of clients (int) or a fraction of them (float in (0, 1]).
        seed: The federation's seed.
        round: The round, from 0. The draw depends on `(seed, round)` and on the ids, not on earlier rounds.

    Returns:
        The cohort in client-id order.

    Raises:
        ValueError: If the cohort is larger than the federation, smaller than one, or a fraction outside (0, 1].
    """
    size = cohort_size(len(clients), cohort)
    if not (1 <= size <= len(clients) and cohort > 0):
        raise ValueError(f"Expected `cohort` to be from 1 to {len(clients)} clients, but got {cohort}.")
    ordered = sorted(clients, key=lambda client: client.id)
    if size == len(ordered):
        return ordered
    chosen = torch.randperm(len(ordered), generator=generator(seed, "cohort", round))[:size]
    return [ordered[i] for i in sorted(chosen.tolist())]


def deal(costs: Mapping[ClientId, float], num_processes: int) -> list[list[ClientId]]:
    """Deal clients over processes so that the most loaded one has little more than its share.

    Longest first, each to the process with the least work so far (Graham, 1969: at most 4/3 of the best makespan).
    Ties go by client id and by rank, so every process computes the same deal.
    """
    hands: list[list[ClientId]] = [[] for _ in range(num_processes)]
    loads = [0.0] * num_processes
    for client in sorted(costs, key=lambda client: (-costs[client], client)):
        rank = min(range(num_processes), key=lambda r: (loads[r], r))
        hands[rank].append(client)
        loads[rank] += costs[client]
    return hands
