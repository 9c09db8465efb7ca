"""A run whose blocks are in files of its folder, and in memory only while they run."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.fabric import Fabric

from lit_fed.adapters.offload import BlockStore
from lit_fed.adapters.state import AdapterView


@contextmanager
def offloaded(view: AdapterView, run: Path, fabric: Fabric) -> Iterator[None]:
    """Keep frozen blocks in ``blocks/`` of the run folder within the scope; afterwards it is gone, and they are back.

    One process writes the files and all read them. What a kill leaves there is written over when the run goes on.

    Args:
        view: The module's adapter; it has blocks, on their device and in their precision.
        run: The run folder.
        fabric: The launched Fabric.
    """
    folder = run / "blocks"
    store = BlockStore(view, folder)
    try:
        if fabric.is_global_zero:
            store.write()
        fabric.barrier()
        with store:
            yield
        fabric.barrier()  # everybody has read its blocks again
    finally:
        if fabric.is_global_zero:
            shutil.rmtree(folder, ignore_errors=True)
