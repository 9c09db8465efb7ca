import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from lit_fed.core.seeding import RandomStream, derive_seed, generator, isolated_rng, random_state

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def test_same_names_same_seed_across_processes() -> None:
    # blake2b of "0<unit separator>str:cohort<unit separator>int:3", by hand.
    from hashlib import blake2b

    expected = int.from_bytes(blake2b(b"0\x1fstr:cohort\x1fint:3", digest_size=8).digest(), "big") >> 1
    assert derive_seed(0, "cohort", 3) == expected


@pytest.mark.parametrize(
    "names",
    [("shuffle", 3), ("cohort", 4), ("cohort",), ("cohort", "3"), (3, "cohort"), ("cohort", 3, 0), ("cohort3",)],
)
def test_other_names_other_seed(names: tuple[str | int, ...]) -> None:
    assert derive_seed(0, *names) != derive_seed(0, "cohort", 3)
    assert derive_seed(1, *names) != derive_seed(0, *names)


def test_seeds_fit_every_generator() -> None:
    seeds = [derive_seed(0, i) for i in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generator() -> None:
    draws = [torch.rand(4, generator=generator(5, "a", 1)) for _ in range(2)]
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], torch.rand(4, generator=generator(5, "a", 2)))


def draw() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_isolated_rng_gives_the_same_numbers_and_puts_everything_back() -> None:
    # That nothing leaks is asserted by the module's fixture.
    with isolated_rng(0, "init"):
        first = draw()
    with isolated_rng(0, "other"):
        other = draw()
        with isolated_rng(0, "init"):
            inner = draw()
    assert first == inner
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_isolated_rng_puts_everything_back_after_an_error() -> None:
    def fail() -> None:
        draw()
        raise ArithmeticError

    with pytest.raises(ArithmeticError), isolated_rng(0, "init"):
        fail()


@pytest.mark.parametrize("draw_one", [random.random, np.random.rand, lambda: torch.rand(()), lambda: np.random.randn()])
def test_a_random_state_tells_whether_anything_was_drawn(draw_one: Callable[[], object]) -> None:
    with isolated_rng(0):
        before = random_state()
        torch.rand(3, generator=generator(0, "one of its own"))
        assert random_state(torch.device("cpu")) == before
        draw_one()
        assert random_state() != before


def test_a_stream_goes_on_where_it_was_left() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    with isolated_rng(3, "fit", 1):
        expected = [draw() for _ in range(3)]
    found, stream, other = [], RandomStream(3, "fit", 1), RandomStream(3, "fit", 2)
    for _ in range(3):
        with other.resumed():
            draw()
        with stream.resumed():
            found.append(draw())
    assert found == expected
