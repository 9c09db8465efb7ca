"""Peak memory of this process."""

import re
import resource
import sys
from pathlib import Path


def peak_resident_bytes() -> int:
    """Peak resident memory of this process, in bytes.

    Linux keeps ``ru_maxrss`` over ``exec``: a process started by a larger one would report its parent's.
    """
    status = Path("/proc/self/status")
    if status.exists() and (match := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(match[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
