"""Random numbers as a hash of (seed, epoch, sample index, draw).

They depend neither on the batch, the worker, the number of processes, nor on whether the run was
resumed.
"""

from __future__ import annotations

from functools import lru_cache

import torch

# The first of a sample's draws for each use; no two uses share a draw.
CROP, ERASING, MIXING, POLICY = 0, 5, 10, 15
MASKING = 1_000  # far behind the draws of a policy, whose number depends on the policy
QUARTER_TURN = 100_000  # behind those of the patches
# 0x9E3779B97F4A7C15 as int64, the increment of splitmix64 (Steele et al. 2014).
_GOLDEN = -7046029254386353131


def _mix(x: torch.Tensor) -> torch.Tensor:
    """Return splitmix64's finaliser of int64 [...].

    Arithmetic on int64 wraps; a right shift has to be made logical.
    """
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@lru_cache
def _seed_hash(seed: int) -> int:
    """Return the hash of a seed, worked out once: a dozen small operations less for every batch."""
    return int(_mix(torch.tensor(seed, dtype=torch.int64) + _GOLDEN))


def uniform(
    seed: int, epoch: torch.Tensor, index: torch.Tensor, count: int, first: int = CROP
) -> torch.Tensor:
    """Return float32 [B, count] in [0, 1), a pure function of the arguments, equal on every device.

    epoch, index: int64 [B] on one device. first: number of the first of the samples' draws.
    """
    sample = _mix(_mix(epoch.long() ^ _seed_hash(seed)) + _GOLDEN * (index.long() + 1))
    draw = torch.arange(first + 1, first + count + 1, device=index.device)
    bits = _mix(sample[:, None] + _GOLDEN * draw)
    return ((bits >> 40) & 0xFFFFFF).float() * 2.0**-24
