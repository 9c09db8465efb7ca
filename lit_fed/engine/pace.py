"""What clients' turns have taken so far, so that the next cohort is dealt by it."""

from collections.abc import Mapping, Sequence

from lit_fed.core.sampling import deal
from lit_fed.core.types import ClientId

_WORTH_IT = 0.9


class Pace:
    """Seconds of each client's turns for a unit of its expected cost; equal in all processes, which see equal rows.

    Who trains where changes no result, so times may decide it, though no two runs measure the same ones. They are in no
    checkpoint: a run that is continued begins with expected costs.
    """

    def __init__(self) -> None:
        self._rates: dict[ClientId, float] = {}
        self._sum = 0.0

    def deal(self, expected: Mapping[ClientId, float], num_processes: int) -> list[list[ClientId]]:
        """By expected costs; by measured ones if the busiest process would have a tenth less to do so.

        A client that comes back to its process finds there what was remembered of it (`federation.cache`), so that for
        less it is not sent elsewhere.
        """
        costs = self.costs(expected)
        usual, measured = deal(expected, num_processes), deal(costs, num_processes)

        def busiest(hands: Sequence[Sequence[ClientId]]) -> float:
            return max(sum(costs[client] for client in hand) for hand in hands)

        return measured if busiest(measured) < _WORTH_IT * busiest(usual) else usual

    def costs(self, expected: Mapping[ClientId, float]) -> dict[ClientId, float]:
        """Expected costs of a cohort (> 0), each times its client's rate; who has had no turn has the mean rate."""
        usual = self._sum / len(self._rates) if self._rates else 1.0
        return {client: cost * self._rates.get(client, usual) for client, cost in expected.items()}

    def note(self, seconds: Mapping[ClientId, float], expected: Mapping[ClientId, float]) -> None:
        """Turns that were made; of a client's rate the last turn is one half, so that one hiccup is forgotten."""
        for client, taken in seconds.items():
            rate, known = taken / expected[client], self._rates.get(client)
            self._sum -= known or 0.0
            self._rates[client] = rate if known is None else (known + rate) / 2
            self._sum += self._rates[client]
