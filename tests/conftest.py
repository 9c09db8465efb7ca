"""What every test gets: fixtures that fail a test which leaves something behind, the shared data, one thread."""

import multiprocessing
import os
import pickle
import random
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed

REPOSITORY = Path(__file__).parent.parent
CACHES = {".pytest_cache", ".mypy_cache", ".ruff_cache", ".import_linter_cache", "__pycache__", ".coverage"}
# Set once by libraries when they are first used, without effect on later tests.
LIBRARY_VARIABLES = {
    "PYTEST_CURRENT_TEST",
    "PYTORCH_NVML_BASED_CUDA_CHECK",
    "CUDA_MODULE_LOADING",
    "KMP_DUPLICATE_LIB_OK",
    "KMP_INIT_AT_FORK",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
}
# Daemons that a library keeps for the life of the process: fsspec's event loop, tqdm's monitor.
LIBRARY_THREADS = ("fsspecIO", "tqdm_monitor", "TMonitor")


def pytest_configure(config: pytest.Config) -> None:
    """No network, no display, and no cache outside a folder that is gone afterwards."""
    cache = tempfile.TemporaryDirectory(prefix="lit_fed_tests_")
    config.add_cleanup(cache.cleanup)
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_CACHE=cache.name, MPLBACKEND="Agg", MPLCONFIGDIR=cache.name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _leaves_environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    after = dict(os.environ)
    os.environ.clear()
    os.environ.update(before)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert not changed - LIBRARY_VARIABLES, "the test changed environment variables"


@pytest.fixture(autouse=True)
def _leaves_threads_and_processes() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    children = multiprocessing.active_children()
    for child in children:
        child.kill()
        child.join()
    assert not children, "the test left processes running"
    new = [t for t in threading.enumerate() if t not in before and not t.name.startswith(LIBRARY_THREADS)]
    for thread in new:
        thread.join(timeout=2)  # some are on their way out
    assert not [thread for thread in new if thread.is_alive()], "the test left threads running"


@pytest.fixture(autouse=True)
def _leaves_process_groups() -> Iterator[None]:
    yield
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        pytest.fail("the test left a process group")


@pytest.fixture(autouse=True)
def _leaves_files() -> Iterator[None]:
    here = Path.cwd()
    folders = {REPOSITORY, here}
    before = {folder: set(os.listdir(folder)) for folder in folders}
    yield
    new = {str(folder / name) for folder in folders for name in set(os.listdir(folder)) - before[folder] - CACHES}
    now = Path.cwd()
    os.chdir(here)
    assert not new, "the test left files outside its own folder"
    assert now == here, "the test changed the working directory"


@pytest.fixture(autouse=True)
def _leaves_torch_settings() -> Iterator[None]:
    def settings() -> dict[str, object]:
        return {
            "threads": torch.get_num_threads(),
            "dtype": torch.get_default_dtype(),
            "grad": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"),
            "matmul": torch.get_float32_matmul_precision(),
        }

    before = settings()
    yield
    after = settings()
    torch.set_num_threads(before["threads"])
    torch.set_default_dtype(before["dtype"])
    torch.set_grad_enabled(before["grad"])
    torch.use_deterministic_algorithms(before["deterministic"])
    torch.set_float32_matmul_precision(before["matmul"])
    assert after == before, "the test changed global settings of torch"


def _rng_states() -> tuple[object, bytes, bytes]:
    numpy_state = pickle.dumps(np.random.get_state(legacy=False))
    return random.getstate(), numpy_state, torch.get_rng_state().numpy().tobytes()


@pytest.fixture(autouse=True)
def _own_rng() -> Iterator[None]:
    """Tests may draw from the global generators; the next test does not see it."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(python_state)
    np.random.set_state(numpy_state)
    torch.set_rng_state(torch_state)


@pytest.fixture
def global_rng_untouched() -> Iterator[None]:
    """For tests of what must neither draw from nor seed the global generators: nearly all of lit_fed."""
    before = _rng_states()
    yield
    assert _rng_states() == before, "a global random generator was used"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[object]:
    """Hugging Face's libraries believe in a network that is not there; their cache is empty. Attempts are listed."""
    from huggingface_hub import constants

    tried: list[object] = []

    def refuse(*address: object, **options: object) -> None:
        tried.append(address)
        raise OSError("there is no network here")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tried


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread: sums in one order, and no oversubscription when processes are started."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: `LIT_FED_DATA`, else `../shared/data` beside the repository."""
    folder = Path(os.environ.get("LIT_FED_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("needs the shared data sets: set LIT_FED_DATA to their folder")
    return folder
