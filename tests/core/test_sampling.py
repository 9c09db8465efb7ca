from itertools import product

import pytest

from lit_fed.core.sampling import cohort_size, deal, per_domain_problems, sample_cohort
from lit_fed.core.types import Client

pytestmark = pytest.mark.usefixtures("global_rng_untouched")
CLIENTS = [Client(f"c{i:02d}", 10 * i) for i in range(20)]


def ids(cohort: list[Client]) -> list[str]:
    return [client.id for client in cohort]


@pytest.mark.parametrize(
    ("num_clients", "cohort", "size"), [(20, 5, 5), (20, 0.25, 5), (20, 1.0, 20), (20, 0.01, 1), (3, 1, 1), (7, 0.5, 4)]
)
def test_size(num_clients: int, cohort: int | float, size: int) -> None:
    assert cohort_size(num_clients, cohort) == size


def test_same_names_same_cohort_whatever_was_drawn_before_and_however_clients_are_listed() -> None:
    first = ids(sample_cohort(CLIENTS, 5, seed=1, round=7))
    sample_cohort(CLIENTS, 5, seed=1, round=8)
    assert ids(sample_cohort(CLIENTS, 5, seed=1, round=7)) == first
    assert ids(sample_cohort(CLIENTS[::-1], 5, seed=1, round=7)) == first


def test_rounds_and_seeds_draw_differently() -> None:
    draws = {tuple(ids(sample_cohort(CLIENTS, 5, seed, round))) for seed, round in product(range(3), range(10))}
    assert len(draws) >= 29  # of 30 draws from 15,504 cohorts, two may coincide


def test_without_replacement_in_id_order() -> None:
    for round in range(20):
        cohort = ids(sample_cohort(CLIENTS, 0.4, 0, round))
        assert len(set(cohort)) == 8
        assert cohort == sorted(cohort)


def test_uniform() -> None:
    counts = dict.fromkeys(ids(CLIENTS), 0)
    for round in range(2000):
        for client in ids(sample_cohort(CLIENTS, 5, 3, round)):
            counts[client] += 1
    # Binomial(2000, 1/4): mean 500, standard deviation 19.4; five of them.
    assert all(abs(count - 500) < 97 for count in counts.values())


def test_everyone() -> None:
    assert ids(sample_cohort(CLIENTS[::-1], 1.0, 0, 0)) == ids(CLIENTS)


@pytest.mark.parametrize("cohort", [0, -1, 21, 1.5, 0.0, -0.5])
def test_impossible_cohorts(cohort: int | float) -> None:
    with pytest.raises(ValueError, match=f"`cohort` to be from 1 to 20 clients, but got {cohort}"):
        sample_cohort(CLIENTS, cohort, 0, 0)


def test_deal_by_hand() -> None:
    # 5 | 4; the 3 joins the 4 (loads 5, 7), the next 3 the 5 (8, 7), the 1 the 4 (8, 8).
    assert deal({"a": 5, "b": 4, "c": 3, "d": 3, "e": 1}, 2) == [["a", "d"], ["b", "c", "e"]]


@pytest.mark.parametrize("num_processes", [1, 2, 3, 8])
def test_everyone_is_dealt_once(num_processes: int) -> None:
    costs = {f"c{i}": float((i * 7919) % 13) for i in range(11)}
    hands = deal(costs, num_processes)
    assert len(hands) == num_processes
    assert sorted(client for hand in hands for client in hand) == sorted(costs)


@pytest.mark.parametrize(
    "costs", [(7, 6, 5, 4, 3, 3), (5, 5, 4, 4, 3, 3, 3), (9, 1, 1, 1), (2, 2, 2), (1, 8, 8, 3, 2, 6)]
)
@pytest.mark.parametrize("num_processes", [2, 3])
def test_deal_is_within_four_thirds_of_the_best(costs: tuple[int, ...], num_processes: int) -> None:
    def makespan(assignment: tuple[int, ...]) -> int:
        return max(sum(c for c, a in zip(costs, assignment, strict=True) if a == rank) for rank in range(num_processes))

    best = min(makespan(assignment) for assignment in product(range(num_processes), repeat=len(costs)))
    named = {f"c{i}": float(cost) for i, cost in enumerate(costs)}
    loads = [sum(named[client] for client in hand) for hand in deal(named, num_processes)]
    assert max(loads) <= 4 / 3 * best


def test_deal_does_not_depend_on_the_order_of_clients() -> None:
    costs = {"a": 2.0, "b": 2.0, "c": 1.0, "d": 1.0}
    assert deal(costs, 2) == deal(dict(reversed(costs.items())), 2) == [["a", "c"], ["b", "d"]]


DOMAINS = [Client(f"{domain}-{i}", 5, domain) for domain in ("ink", "lead", "oil") for i in range(4)]


def test_per_domain_draws_as_many_from_each() -> None:
    seen: set[str] = set()
    for round in range(40):
        cohort = ids(sample_cohort(DOMAINS, 6, 0, round, "per_domain"))
        assert cohort == sorted(cohort)
        assert [client.partition("-")[0] for client in cohort] == ["ink", "ink", "lead", "lead", "oil", "oil"]
        assert ids(sample_cohort(DOMAINS[::-1], 6, 0, round, "per_domain")) == cohort
        seen |= set(cohort)
    assert seen == set(ids(DOMAINS))


def test_per_domain_draws_of_different_domains_are_independent() -> None:
    """Of 300 rounds, two domains draw the same number a quarter of the time."""
    cohorts = [ids(sample_cohort(DOMAINS, 3, 0, round, "per_domain")) for round in range(300)]
    same = sum(cohort[0][-1] == cohort[1][-1] for cohort in cohorts)
    assert abs(same - 75) < 4 * (300 * 3 / 16) ** 0.5


@pytest.mark.parametrize(
    ("clients", "cohort", "message"),
    [
        (DOMAINS, 4, "Use a multiple of 3"),
        (DOMAINS, 2, "does not go with a cohort of 2"),
        ([*DOMAINS[1:], Client("x", 1, "chalk")], 8, "from 4 domains, the smallest with 1"),
        ([*DOMAINS, Client("stray", 1)], 3, "have none: \\['stray'\\]"),
    ],
)
def test_per_domain_that_cannot_be(clients: list[Client], cohort: int, message: str) -> None:
    assert len(per_domain_problems(clients, cohort)) == 1
    with pytest.raises(ValueError, match=message):
        sample_cohort(clients, cohort, 0, 0, "per_domain")
