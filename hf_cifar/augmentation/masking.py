"""Which patches of an image a masked autoencoder sees, drawn by counter."""

from __future__ import annotations

import torch

from hf_cifar.augmentation.counter_rng import MASKING, uniform


def patch_order(seed: int, epoch: torch.Tensor, index: torch.Tensor, patches: int) -> torch.Tensor:
    """Return float32 [B, patches]: for each patch its place, from 0, in a random order of the
    patches of its image. An autoencoder sees those whose places come first.

    The places are whole numbers without ties, so that every device and every sorting algorithm
    hides the same patches. They depend on seed, epoch and image alone.

    epoch, index: int64 [B] on one device.
    """
    draws = uniform(seed, epoch, index, patches, MASKING)
    return draws.argsort(dim=1, stable=True).argsort(dim=1).float()
