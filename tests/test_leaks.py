"""The fixtures that catch leaks catch them, each the one it is there for."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

LEAKS = """
import os, random, sys, threading, time
import numpy as np
import pytest, torch

def test_clean(tmp_path):
    (tmp_path / "f").touch()

def test_environment():
    os.environ["LEAKED"] = "1"

def test_thread():
    threading.Thread(target=time.sleep, args=(4,), daemon=True).start()

def test_group():
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )

def test_file():
    open("left", "w").close()

def test_folder():
    os.chdir("tests")

def test_dtype():
    torch.set_default_dtype(torch.float64)

def test_rng(global_rng_untouched):
    torch.rand(1)

def test_rng_of_python(global_rng_untouched):
    random.random()

def test_rng_of_numpy(global_rng_untouched):
    np.random.rand()

def test_after_all():
    assert "LEAKED" not in os.environ
    assert torch.get_default_dtype() == torch.float32
    assert not torch.distributed.is_initialized()

@pytest.mark.gpu
def test_gpu():
    assert torch.cuda.is_available()
"""


def test_leaks_are_caught(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    tests = pytester.mkdir("tests")
    (tests / "conftest.py").write_text((Path(__file__).parent / "conftest.py").read_text())
    (tests / "test_leaks.py").write_text(LEAKS)
    pytester.makeini("[pytest]\nmarkers = gpu")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-rE")
    said = {line.split("::")[1].split(" - ")[0] for line in result.outlines if line.startswith("ERROR tests/")}
    caught = ["environment", "thread", "group", "file", "folder", "dtype", "rng", "rng_of_python", "rng_of_numpy"]
    assert said == {f"test_{name}" for name in caught}
    outcomes = result.parseoutcomes()
    assert outcomes.pop("skipped", 0) + outcomes["passed"] == 12
    assert "failed" not in outcomes
