"""A few bytes about each picture, so that splits can be compared without decoding them again."""

from __future__ import annotations

import numpy as np
import xxhash

# digest: XXH3 over size and pixels. drafted: the pixels were those of a JPEG at a fraction of its
# size. quadrants: mean red, green and blue of the four quarters (of a table they stay 0).
LOOK = np.dtype(
    [("digest", "<u8"), ("drafted", "?"), ("size", "<u4", (2,)), ("quadrants", "u1", (12,))]
)


def pixel_digest(image: np.ndarray, size: tuple[int, int], drafted: bool = False) -> int:
    """Return 64 bits over uint8 [3, H, W], the picture's (height, width) and `drafted`."""
    seed = size[0] << 32 | size[1] << 1 | drafted
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(image).data, seed)


def look(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the `LOOK` of a picture of (height, width) `size`, from uint8 [3, H, W] of it."""
    drafted = image.shape[1:] != size
    means = quadrants(image[None])[0]
    return np.array((pixel_digest(image, size, drafted), drafted, size, means), LOOK)


def table_looks(pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return `LOOK` [n] of `rows` of uint8 [N, 3, H, W], without quadrants."""
    looks = np.zeros(len(rows), LOOK)
    size = pixels.shape[2], pixels.shape[3]
    looks["size"] = size
    looks["digest"] = [pixel_digest(pixels[row], size) for row in rows]
    return looks


def quadrants(images: np.ndarray) -> np.ndarray:
    """Return uint8 [B, 12], the means of the quarters of uint8 [B, 3, H, W]."""
    down, across = (_halves(side) for side in images.shape[2:])
    means = down.T @ (images.astype(np.float32) @ across)
    return means.round().astype(np.uint8).reshape(len(images), 12)


def _halves(side: int) -> np.ndarray:
    """Return float32 [side, 2] that averages the first and the second half."""
    weights = np.zeros((side, 2), np.float32)
    weights[: (side + 1) // 2, 0] = 1
    weights[side // 2 :, 1] = 1
    return weights / weights.sum(0)
