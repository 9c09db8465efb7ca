"""Which process this is, of those that were started together."""

import os


def first_process() -> bool:
    """Whether this is the one that prints."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"))
