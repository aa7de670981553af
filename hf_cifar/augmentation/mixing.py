"""Mixup and CutMix: each training image is mixed with another, and so are their labels.

Which other image, and how much of it, are functions of seed, epoch and sample index
(`counter_rng`), so the result does not depend on which images share a batch.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import betaincinv

from hf_cifar.augmentation.counter_rng import MIXING, uniform


def draw(
    mixup: float, cutmix: float, seed: int, epoch: np.ndarray, index: np.ndarray, n: int, size: int
) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """Return the partners of B of n images, int64 [B], and what `mix` does with them.

    mixup, cutmix: the two alphas, at least one above 0; with both, each image gets one of them at
        even chance.
    epoch, index: int64 [B]. size: height and width of the images in px.

    An image's share is drawn from Beta(alpha, alpha) by its inverse. CutMix's box has the area of
    the rest, lies anywhere and is cut to the image; what is left of it gives the share that counts
    (Yun et al. 2019, algorithm 1).

    What `mix` needs: share, float32 [B], of the image's own label; blend, float32 [B], of its own
    pixels outside the box; box, int64 [B, 4]: (top, bottom, left, right), ends not included, empty
    for mixup.
    """
    draws = np.asarray(
        uniform(seed, torch.from_numpy(epoch), torch.from_numpy(index), 5, MIXING), np.float64
    ).T
    partners = (index + 1 + (draws[0] * (n - 1)).astype(np.int64)) % n
    is_cut = draws[1] < (0.5 if mixup else 1.0) * (cutmix > 0)
    alpha = np.where(is_cut, cutmix, mixup)
    share = betaincinv(alpha, alpha, draws[2])
    side = np.where(is_cut, (size * np.sqrt(1 - share)).astype(np.int64), 0)
    starts = [(size * d).astype(np.int64) - side // 2 for d in draws[3:]]
    box = np.stack(
        [np.clip(edge, 0, size) for start in starts for edge in (start, start + side)], 1
    )
    area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
    blend = np.where(is_cut, 1.0, share)
    share = np.where(is_cut, 1 - area / size**2, share)
    return partners, {
        "share": torch.from_numpy(share.astype(np.float32)),
        "blend": torch.from_numpy(blend.astype(np.float32)),
        "box": torch.from_numpy(box),
    }


def mix(pixels: torch.Tensor, drawn: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return float32 [B, 3, S, S] from float32 [2B, 3, S, S], B images and then their partners.

    drawn: what `draw` gave, on the device of the pixels.
    """
    images, partners = pixels.chunk(2)
    place = torch.arange(pixels.shape[-1], device=pixels.device)
    top, bottom, left, right = drawn["box"].T[..., None]
    rows = ((place >= top) & (place < bottom))[:, :, None]
    columns = ((place >= left) & (place < right))[:, None]
    blend = drawn["blend"][:, None, None].masked_fill(rows & columns, 0.0)
    return torch.lerp(partners, images, blend[:, None])


def soft_targets(
    labels: torch.Tensor, partners: torch.Tensor, share: torch.Tensor, classes: int
) -> torch.Tensor:
    """Return float32 [B, C] that sum to one: `share` of the first label, the rest of the second.

    labels, partners: int64 [B]. share: float32 [B].
    """
    # one_hot would read the largest label, and so wait for the device.
    each = torch.arange(classes, device=labels.device)
    return torch.lerp(
        (partners[:, None] == each).float(), (labels[:, None] == each).float(), share[:, None]
    )
