"""Random numbers as a hash of (seed, epoch, sample index, draw): they depend on neither the batch,
the worker, the number of processes nor on whether the run was resumed.
"""

from __future__ import annotations

from functools import lru_cache

import torch

# The first of a sample's draws for each use; no two share one.
CROP, ERASING, MIXING, POLICY = 0, 5, 10, 15
_GOLDEN = (
    -7046029254386353131
)  # 0x9E3779B97F4A7C15 as int64, the increment of splitmix64 (Steele et al. 2014)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """splitmix64's finaliser on int64 tensors, whose arithmetic wraps; a right shift there must be
    made logical.
    """
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@lru_cache
def _of_seed(seed: int) -> int:
    """On the host, once: a dozen small operations less for every batch."""
    return int(_mix(torch.tensor(seed, dtype=torch.int64) + _GOLDEN))


def uniform(
    seed: int, epoch: torch.Tensor, index: torch.Tensor, count: int, first: int = CROP
) -> torch.Tensor:
    """Random float32 [B, count] in [0, 1), a pure function of its arguments and equal on every
    device.

    `epoch`, `index`: int64 [B] on one device. first: of the sample's draws.
    """
    sample = _mix(_mix(epoch.long() ^ _of_seed(seed)) + _GOLDEN * (index.long() + 1))
    draw = torch.arange(first + 1, first + count + 1, device=index.device)
    bits = _mix(sample[:, None] + _GOLDEN * draw)
    return ((bits >> 40) & 0xFFFFFF).float() * 2.0**-24
