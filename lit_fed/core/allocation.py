"""Which transformer blocks each client of a round is given: the allocation matrix of FedRA."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from lit_fed.core.types import ClientId

Coverage = Literal["keep", "repair", "deal", "none"]
Rows = dict[ClientId, tuple[int, ...]]
"""Client -> its blocks, ascending: the rows of the allocation matrix."""

_MOST_REPAIRS = 1000  # with as many places as blocks a repair may undo another; the mean is 25 for 12 blocks


def allocate(
    capacities: Mapping[ClientId, int], num_blocks: int, random: torch.Generator, coverage: Coverage = "keep"
) -> Rows:
    """Draw for each client a uniformly random subset of as many blocks as it can hold.

    Rows are drawn in client-id order and are independent of one another, unless blocks that nobody drew are to be
    covered:

    - ``"repair"`` gives uncovered blocks to a random client, which fills the rest of its places with covered ones,
      until none is left (the procedure that is commented out in the authors' code);
    - ``"deal"`` deals all blocks out first, one at a time to the clients in a random order, and fills what places are
      left at random;
    - ``"keep"`` and ``"none"`` leave the rows as they were drawn; what happens to such a block is the aggregation's
      matter.

    Where the places of all clients together are fewer than the blocks, as many as there are places are covered.

    Args:
        capacities: Client -> blocks it can hold, from 1 to `num_blocks`.
        num_blocks: Blocks of the model.
        random: Where randomness comes from.
        coverage: See above.

    Returns:
        Client -> its blocks.

    Raises:
        ValueError: If a capacity is below 1 or above `num_blocks`.
    """
    if wrong := {client: c for client, c in capacities.items() if not 1 <= c <= num_blocks}:
        raise ValueError(f"Expected capacities from 1 to {num_blocks} blocks, but got {wrong}.")
    clients = sorted(capacities)
    enough = sum(capacities.values()) >= num_blocks
    if coverage == "deal" or (coverage == "repair" and not enough):
        return _deal(clients, capacities, num_blocks, random)
    rows = {client: _draw(range(num_blocks), capacities[client], random) for client in clients}
    if coverage == "repair":
        for _ in range(_MOST_REPAIRS):
            missing = uncovered(rows, num_blocks)
            if not missing:
                break
            client = clients[int(torch.randint(len(clients), (), generator=random))]
            rows[client] = _fill(missing, capacities[client], num_blocks, random)
        else:
            return _deal(clients, capacities, num_blocks, random)
    return {client: tuple(sorted(row)) for client, row in rows.items()}


def uncovered(rows: Mapping[ClientId, Sequence[int]], num_blocks: int) -> list[int]:
    """The blocks that no client holds, ascending."""
    held = {block for row in rows.values() for block in row}
    return [block for block in range(num_blocks) if block not in held]


def _draw(choices: Sequence[int], number: int, random: torch.Generator) -> list[int]:
    order = torch.randperm(len(choices), generator=random)[:number].tolist()
    return [choices[i] for i in order]


def _fill(first: list[int], capacity: int, num_blocks: int, random: torch.Generator) -> list[int]:
    """A row with as many of `first` as fit, and random others in the places that are left."""
    row = _draw(first, capacity, random)
    others = [block for block in range(num_blocks) if block not in set(first)]
    return row + _draw(others, capacity - len(row), random)


def _deal(
    clients: list[ClientId], capacities: Mapping[ClientId, int], num_blocks: int, random: torch.Generator
) -> Rows:
    hands: dict[ClientId, list[int]] = {client: [] for client in clients}
    deck = _draw(range(num_blocks), num_blocks, random)
    seats = [clients[i] for i in _draw(range(len(clients)), len(clients), random)]
    while deck and any(len(hands[client]) < capacities[client] for client in clients):
        for client in seats:
            if deck and len(hands[client]) < capacities[client]:
                hands[client].append(deck.pop())
    for client in clients:
        others = [block for block in range(num_blocks) if block not in hands[client]]
        hands[client] += _draw(others, capacities[client] - len(hands[client]), random)
    return {client: tuple(sorted(hand)) for client, hand in hands.items()}
