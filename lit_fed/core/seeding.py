"""Randomness as a function of names: the same names give the same numbers, whoever asks, in whatever order."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed from a base seed and names, e.g. ``derive_seed(0, "cohort", round)``."""
    text = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator for one purpose, e.g. ``generator(seed, "shuffle", round, client)``."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))


@contextmanager
def isolated_rng(seed: int, *names: str | int) -> Iterator[None]:
    """Seed the global generators (Python, NumPy, torch on every device) for a scope, and put them back afterwards.

    For code that draws from the global generators and cannot be told otherwise: weight initialisation, dropout,
    a user's augmentations.
    """
    import numpy as np

    derived = derive_seed(seed, *names)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices=devices):
            random.seed(derived)
            np.random.seed(derived % 2**32)  # NumPy's legacy generator takes 32 bits
            _seed_torch(derived)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _seed_torch(seed: int) -> None:
    """``torch.manual_seed``, which without an accelerator keeps a stack trace for one to come: half a millisecond."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


class RandomStream:
    """The global generators on the CPU, for someone who draws from them now and then, between others.

    What is drawn in its `resumed` scopes, one after another, is what is drawn in one `isolated_rng` of the same names.
    """

    def __init__(self, seed: int, *names: str | int) -> None:
        with isolated_rng(seed, *names):
            self._state = _cpu_state()

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """A scope in which the generators go on where the last one ended; afterwards they are as they were before."""
        before = _cpu_state()
        _set_cpu_state(self._state)
        try:
            yield
        finally:
            self._state = _cpu_state()
            _set_cpu_state(before)


def random_state(device: torch.device | None = None) -> tuple[object, ...]:
    """Where the global generators stand: of Python, NumPy, torch, and of a GPU, if that is the device.

    For comparison: equal before and after means that nothing was drawn in between.
    """
    import numpy as np

    name, numbers, *rest = np.random.get_state()
    on_device = torch.cuda.get_rng_state(device).numpy().tobytes() if device and device.type == "cuda" else b""
    torch_state = torch.get_rng_state().numpy().tobytes()
    return random.getstate(), name, bytes(numbers), *rest, torch_state, on_device  # type: ignore[arg-type]


def _cpu_state() -> tuple[Any, Any, torch.Tensor]:
    import numpy as np

    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_cpu_state(state: tuple[Any, Any, torch.Tensor]) -> None:
    import numpy as np

    python_state, numpy_state, torch_state = state
    random.setstate(python_state)
    np.random.set_state(numpy_state)
    torch.set_rng_state(torch_state)
