"""Drops of water and mud on the lens, from a thresholded random layer.

The steps are OpenCV's on pictures of 8 bits: edges (Canny), the distance to them, histogram
equalisation and two small filters.
"""

from __future__ import annotations

import numpy as np
import torch

from hf_cifar.augmentation.sampling import correlate, gaussian_blur

WATER = (175 / 255, 238 / 255, 238 / 255)  # pale turquoise
MUD = (63 / 255, 42 / 255, 20 / 255)
LOW, HIGH = 50, 150  # Canny's thresholds
FARTHEST = 20.0  # distances are cut there
# Costs of the steps to a neighbour, OpenCV's for a mask of 5 x 5 pixels.
STRAIGHT, DIAGONAL, KNIGHT = 1.0, 1.4, 2.1969
TAN_22, TAN_67 = 0.4142135623730950488, 2.4142135623730950488
BOX = np.full((3, 3), 1 / 9)
RIDGES = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])


def water(images: torch.Tensor, layer: torch.Tensor, strength: float) -> torch.Tensor:
    """Return float32 [B, 3, H, W] in 0..1 with drops of water.

    layer: float32 [B, 1, H, W] in 0..1, zero where there is no liquid.
    """
    liquid = (layer * 255).clamp(0, 255).floor()
    far = distance_to(canny(liquid)).clamp_(max=FARTHEST)
    even = equalize(correlate(far, BOX).floor())
    ridges = correlate(even, RIDGES).clamp_(0, 255)
    drops = liquid * correlate(ridges, BOX).round()
    most = drops.amax((2, 3), keepdim=True)
    drops = torch.where(most > 0, drops / most, 0.0) * strength
    return images + drops * images.new_tensor(WATER)[:, None, None]


def mud(images: torch.Tensor, layer: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return float32 [B, 3, H, W] in 0..1 with spots of mud. layer: as in `water`."""
    spots = gaussian_blur((layer > 0).float(), sigma)
    spots = torch.where(spots < 0.8, 0.0, spots)
    return images * (1 - spots) + spots * images.new_tensor(MUD)[:, None, None]


def canny(images: torch.Tensor) -> torch.Tensor:
    """Return bool [B, 1, H, W], the edges of float32 [B, 1, H, W] in whole numbers 0 to 255."""
    height, width = images.shape[-2:]
    near = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")

    def shifted(values: torch.Tensor, down: int, across: int) -> torch.Tensor:
        return values[..., 1 + down : 1 + down + height, 1 + across : 1 + across + width]

    def sobel(rows: bool) -> torch.Tensor:
        total = torch.zeros_like(images)
        for along, weight in ((-1, 1), (0, 2), (1, 1)):
            ends = [(side, along) if rows else (along, side) for side in (1, -1)]
            total += weight * (shifted(near, *ends[0]) - shifted(near, *ends[1]))
        return total

    dx, dy = sobel(rows=False), sobel(rows=True)
    size = dx.abs() + dy.abs()
    around = torch.nn.functional.pad(size, (1, 1, 1, 1))  # beyond the border there is no edge

    def higher(first: tuple[int, int], second: tuple[int, int], also_equal: bool) -> torch.Tensor:
        before, after = shifted(around, *first), shifted(around, *second)
        return (size > before) & ((size >= after) if also_equal else (size > after))

    across = higher((0, -1), (0, 1), also_equal=True)
    down = higher((-1, 0), (1, 0), also_equal=True)
    falling = higher((-1, -1), (1, 1), also_equal=False)
    rising = higher((-1, 1), (1, -1), also_equal=False)
    diagonal = torch.where((dx < 0) ^ (dy < 0), rising, falling)
    is_flat, is_steep = dy.abs() < TAN_22 * dx.abs(), dy.abs() > TAN_67 * dx.abs()
    ridge = torch.where(is_flat, across, torch.where(is_steep, down, diagonal))
    weak, edges = ridge & (size > LOW), ridge & (size > HIGH)
    while True:  # weak edges count where they touch a strong one
        grown = torch.nn.functional.max_pool2d(edges.float(), 3, 1, 1).bool() & weak
        if torch.equal(grown, edges):
            return edges
        edges = grown


def distance_to(edges: torch.Tensor) -> torch.Tensor:
    """Return float32 [B, 1, H, W], how far each pixel is from an edge, at least `FARTHEST` where
    there is none near.

    edges: bool [B, 1, H, W].
    """
    height, width = edges.shape[-2:]
    steps = [
        (down, across, {1: STRAIGHT, 2: DIAGONAL, 5: KNIGHT}[down**2 + across**2])
        for down in range(-2, 3)
        for across in range(-2, 3)
        if down**2 + across**2 in (1, 2, 5)
    ]
    far = torch.where(edges, 0.0, 2 * FARTHEST)
    while True:
        around = torch.nn.functional.pad(far, (2, 2, 2, 2), value=2 * FARTHEST)
        nearer = far
        for down, across, cost in steps:
            neighbour = around[..., 2 + down : 2 + down + height, 2 + across : 2 + across + width]
            nearer = torch.minimum(nearer, neighbour + cost)
        if torch.equal(nearer, far):
            return far
        far = nearer


def equalize(images: torch.Tensor) -> torch.Tensor:
    """Return float32 [B, 1, H, W] with an even histogram, of whole numbers 0 to 255."""
    flat = images.flatten(1).long()
    counts = torch.zeros(len(flat), 256, dtype=torch.int64, device=flat.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    first = counts.gather(1, flat.amin(1, keepdim=True))
    rest = flat.shape[1] - first
    scale = 255.0 / rest.clamp(min=1).float()
    table = ((counts.cumsum(1) - first).float() * scale).round_().clamp_(0, 255)
    even = table.gather(1, flat)
    return torch.where(rest > 0, even, flat.float()).view_as(images)
