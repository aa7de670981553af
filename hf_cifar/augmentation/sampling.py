"""Blurs, zooms and shifts of whole batches, as sums of shifted or weighted pixels.

Only additions, multiplications and gathers are used, always in one order: a picture gets the same
bits in a batch of any size, which convolutions and matrix products do not promise.
"""

from __future__ import annotations

import math

import numpy as np
import torch


def border(index: np.ndarray, side: int, mode: str) -> np.ndarray:
    """Return which pixel of a side stands for each index beyond it, int64.

    mode: "nearest" repeats the last pixel, "reflect" mirrors with it (d c b a | a b c d), "mirror"
    mirrors around it (d c b | a b c d).
    """
    if mode == "nearest" or side == 1:
        return index.clip(0, side - 1)
    period = 2 * side if mode == "reflect" else 2 * side - 2
    index = index % period
    return np.where(index < side, index, period - index - (mode == "reflect"))


def weigh(images: torch.Tensor, axis: int, index: np.ndarray, weights: np.ndarray) -> torch.Tensor:
    """Return float32 images whose pixel i along `axis` is the sum over k of `weights[i, k]` times
    the pixel `index[i, k]`.

    images: float32 [..., H, W]. axis: -1 or -2. index, weights: [out, K].
    """
    total: torch.Tensor | None = None
    for places, shares in zip(index.T, weights.T, strict=True):
        share = torch.from_numpy(shares.astype(np.float32)).to(images.device)
        place = torch.from_numpy(np.ascontiguousarray(places)).to(images.device)
        share = share if axis == -1 else share[:, None]
        part = images.index_select(axis, place).mul_(share)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def gaussian_blur(
    images: torch.Tensor, sigma: float, mode: str = "nearest", truncate: float = 4.0
) -> torch.Tensor:
    """Return float32 images, blurred as scipy.ndimage.gaussian_filter does.

    images: float32 [..., H, W]. sigma: in px. mode: see `border`. truncate: in sigmas.
    """
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return images
    reach = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (reach / sigma) ** 2)
    weights /= weights.sum()
    for axis in (-1, -2):
        side = images.shape[axis]
        index = border(np.arange(side)[:, None] + reach, side, mode)
        images = weigh(images, axis, index, np.broadcast_to(weights, index.shape))
    return images


def correlate(images: torch.Tensor, kernel: np.ndarray) -> torch.Tensor:
    """Return float32 images after a correlation with a kernel, the border mirrored around its last
    pixel, as OpenCV's filter2D does.

    images: float32 [..., H, W]. kernel: [K, K], K odd.
    """
    height, width = images.shape[-2:]
    reach = len(kernel) // 2
    for axis in (-1, -2):
        side = images.shape[axis]
        place = torch.from_numpy(border(np.arange(-reach, side + reach), side, "mirror"))
        images = images.index_select(axis, place.to(images.device))
    total = torch.zeros_like(images[..., :height, :width])
    for row, column in np.argwhere(kernel):
        shifted = images[..., row : row + height, column : column + width]
        total = total.add_(shifted, alpha=float(kernel[row, column]))
    return total


def zoom_index(side: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Return index and weights for `weigh` that enlarge the middle of a side linearly, as
    scipy.ndimage.zoom (order 1) does: [side, 2] each.
    """
    cropped = math.ceil(side / factor)
    first, enlarged = (side - cropped) // 2, round(cropped * factor)
    out = (enlarged - side) // 2 + np.arange(side)
    place = out * ((cropped - 1) / max(1, enlarged - 1))
    left = np.floor(place).astype(np.int64).clip(0, max(0, cropped - 2))
    share = place - left
    index = first + np.stack([left, np.minimum(left + 1, cropped - 1)], 1)
    return index, np.stack([1 - share, share], 1)


def zoom(images: torch.Tensor, factor: float) -> torch.Tensor:
    """Return float32 images of the same size, their middle enlarged by `factor` from 1 on."""
    for axis in (-2, -1):
        images = weigh(images, axis, *zoom_index(images.shape[axis], factor))
    return images


def box_index(side: int, out: int) -> tuple[np.ndarray, np.ndarray]:
    """Return index and weights for `weigh` that resize a side to `out` pixels with Pillow's box
    filter: means when it shrinks, the nearest pixel when it grows.
    """
    scale = side / out
    middle = (np.arange(out)[:, None] + 0.5) * scale
    pixel = np.arange(side)
    distance = (pixel + 0.5 - middle) / max(scale, 1.0)
    inside = (distance > -0.5) & (distance <= 0.5)
    most = inside.sum(1).max()
    index = np.argsort(~inside, axis=1, kind="stable")[:, :most]
    weights = np.take_along_axis(inside, index, 1) / inside.sum(1, keepdims=True)
    return index, weights


def motion_blur(
    images: torch.Tensor, radius: float, sigma: float, degrees: torch.Tensor
) -> torch.Tensor:
    """Return float32 whole numbers: images moved along a line, as ImageMagick's motion blur.

    images: float32 [B, C, H, W], 0 to 255. degrees: float64 [B], the direction of each image's
    line, which starts at the pixel itself.
    """
    taps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    weights /= weights.sum()
    height, width = images.shape[-2:]
    angle = degrees * (math.pi / 180)
    rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
    flat, total = images.flatten(2), torch.zeros_like(images).flatten(2)
    for tap, weight in zip(taps.tolist(), weights.tolist(), strict=True):
        down, across = ((tap * part - 0.5).ceil().long() for part in (angle.sin(), angle.cos()))
        row = (rows + down[:, None]).clamp_(0, height - 1)
        column = (columns + across[:, None]).clamp_(0, width - 1)
        place = (row[:, :, None] * width + column[:, None, :]).flatten(1)
        moved = flat.gather(2, place[:, None].expand(-1, images.shape[1], -1))
        total = total.add_(moved, alpha=weight)
    return total.view_as(images).add_(0.5).floor_()


def look_up(
    images: torch.Tensor, row: torch.Tensor, column: torch.Tensor, mode: str
) -> torch.Tensor:
    """Return float32 [B, C, H, W], the images at places between their pixels, bilinearly.

    images: float32 [B, C, H, W]. row, column: float32 [B, H, W], in px. mode: see `border`.
    """
    height, width = images.shape[-2:]
    top, left = row.floor(), column.floor()
    down, across = (row - top)[:, None], (column - left)[:, None]
    flat = images.flatten(2)

    def at(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        place = _inside(row.long(), height, mode) * width + _inside(column.long(), width, mode)
        corner = flat.gather(2, place.flatten(1)[:, None].expand(-1, images.shape[1], -1))
        return corner.view_as(images)

    upper = at(top, left) * (1 - across) + at(top, left + 1) * across
    lower = at(top + 1, left) * (1 - across) + at(top + 1, left + 1) * across
    return upper * (1 - down) + lower * down


def _inside(index: torch.Tensor, side: int, mode: str) -> torch.Tensor:
    """Return `border` of a tensor, by a table of the indices within two sides of the image."""
    table = torch.from_numpy(border(np.arange(-2 * side, 3 * side), side, mode)).to(index.device)
    return table[(index + 2 * side).clamp_(0, 5 * side - 1)]
