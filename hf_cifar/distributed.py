"""Which process of the run this one is, how many there are, and what they agree on.

Nothing here imports torch before it is needed, so that the command can ask for its rank at once.
"""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")


def rank() -> int:
    """Return the number of this process among all processes of the run; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def usable_cores() -> int:
    """Return how many CPU cores this process may run on: Slurm, for example, grants a part."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cores_for_each_process() -> int:
    """Return how many of the cores each process of the run has on this machine, at least one."""
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def world_size() -> int:
    """Return the number of processes that have met; 1 before they do."""
    import torch

    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def is_local_writer() -> bool:
    """Return whether this process is the one that writes shared files of its node."""
    from accelerate import PartialState

    return world_size() == 1 or PartialState().is_local_main_process


def all_processes(condition: bool) -> bool:
    """Return whether `condition` holds in every process. Every process must call this."""
    from accelerate.utils import gather_object

    return all(gather_object([condition])) if world_size() > 1 else condition


def from_first_process(value: T) -> T:
    """Return the first process's `value` in every process. Every process must call this."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0] if world_size() > 1 else value
