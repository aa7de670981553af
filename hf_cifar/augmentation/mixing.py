"""Mixup and cutmix, image by image: each is mixed with another image of the training set, and so
are their labels.

Who the other is and how much of it there is are functions of seed, epoch and sample index
(`counters`), so the result does not depend on which images share a batch.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import betaincinv

from hf_cifar.augmentation.counter_rng import MIXING, uniform


def draw(
    mixup: float, cutmix: float, seed: int, epoch: np.ndarray, index: np.ndarray, n: int, size: int
) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """For B images of n, `size` pixels wide and high: int64 [B], the image that each is mixed with,
    and what `mix` needs.

    mixup, cutmix: the alphas of the two, at least one above 0; with both, each image gets one of
    them at even chance. The share of the image itself is drawn from Beta(alpha, alpha) by its
    inverse. Cutmix's box has the area of the rest, lies anywhere and is cut to the image, which
    gives the share that counts (Yun et al. 2019, algorithm 1).

    epoch, index: int64 [B]. What `mix` needs: share, float32 [B], of the image's own label; blend,
    float32 [B], of its own pixels outside the box; box, int64 [B, 4]: (top, bottom, left, right),
    the ends not included, empty for mixup.
    """
    draws = np.asarray(
        uniform(seed, torch.from_numpy(epoch), torch.from_numpy(index), 5, MIXING), np.float64
    ).T
    partner = (index + 1 + (draws[0] * (n - 1)).astype(np.int64)) % n
    cuts = draws[1] < (0.5 if mixup else 1.0) * (cutmix > 0)
    alpha = np.where(cuts, cutmix, mixup)
    share = betaincinv(alpha, alpha, draws[2])
    side = np.where(cuts, (size * np.sqrt(1 - share)).astype(np.int64), 0)
    starts = [(size * d).astype(np.int64) - side // 2 for d in draws[3:]]
    box = np.stack(
        [np.clip(edge, 0, size) for start in starts for edge in (start, start + side)], 1
    )
    area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
    blend = np.where(cuts, 1.0, share)
    share = np.where(cuts, 1 - area / size**2, share)
    found = {"share": share.astype(np.float32), "blend": blend.astype(np.float32), "box": box}
    return partner, {name: torch.from_numpy(values) for name, values in found.items()}


def mix(pixels: torch.Tensor, drawn: dict[str, torch.Tensor]) -> torch.Tensor:
    """float32 [2B, 3, S, S], B images and then their partners -> [B, 3, S, S]."""
    own, other = pixels.chunk(2)
    place = torch.arange(pixels.shape[-1], device=pixels.device)
    top, bottom, left, right = drawn["box"].T[..., None]
    inside = ((place >= top) & (place < bottom))[:, :, None] & ((place >= left) & (place < right))[
        :, None
    ]
    blend = drawn["blend"][:, None, None].masked_fill(inside, 0.0)
    return torch.lerp(other, own, blend[:, None])


def soft_targets(
    labels: torch.Tensor, partners: torch.Tensor, share: torch.Tensor, classes: int
) -> torch.Tensor:
    """float32 [B, C] that sum to one, from int64 [B], int64 [B] and float32 [B]: `share` of the
    first label.
    """
    each = torch.arange(
        classes, device=labels.device
    )  # one_hot would look at the labels, and wait for them
    return torch.lerp(
        (partners[:, None] == each).float(), (labels[:, None] == each).float(), share[:, None]
    )
