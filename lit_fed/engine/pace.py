"""What clients' turns have taken so far, so that the next cohort is dealt by it."""

from collections.abc import Mapping

from lit_fed.core.types import ClientId


class Pace:
    """Seconds of each client's turns for a unit of its expected cost; equal in all processes, which see equal rows.

    Who trains where changes no result, so times may decide it, though no two runs measure the same ones. They are in no
    checkpoint: a run that is continued begins with expected costs.
    """

    def __init__(self) -> None:
        self._rates: dict[ClientId, float] = {}
        self._sum = 0.0

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
