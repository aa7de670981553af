"""The memory of the process on its host."""

from __future__ import annotations

import platform
import resource
from pathlib import Path


def peak_host_memory() -> int:
    """Return the most resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        # On Linux ru_maxrss starts with the value of the process that started this one.
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
