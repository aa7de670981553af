"""Pictures that two splits share, exactly by their pixels."""

from __future__ import annotations

import numpy as np

from hf_cifar.data.image_store import ImageStore
from hf_cifar.data.looks import pixel_digest, quadrants
from hf_cifar.data.splits import Split

NEAR = 6  # most by which the means of a drafted JPEG's quarters differ from those of all its pixels


def in_both(first: Split, second: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return bool [n] and bool [m]: which pictures of each split the other one has, too."""
    mine, theirs = _exact_digests(first, second), _exact_digests(second, first)
    return np.isin(mine, theirs), np.isin(theirs, mine)


def _exact_digests(split: Split, other: Split) -> np.ndarray:
    """Return uint64 [n], which agree with those of `other` where the pixels are equal.

    A JPEG of which only the draft is known is decoded if `other` may have its equal.
    """
    mine, theirs = split.images.looks(split.rows), other.images.looks(other.rows)
    digests = mine["digest"].copy()
    drafted = np.flatnonzero(mine["drafted"])
    if not len(drafted):
        return digests
    candidates = np.isin(mine["digest"][drafted], theirs["digest"])
    exact = np.flatnonzero(~theirs["drafted"])
    if len(exact):
        from scipy.spatial import KDTree

        tree = KDTree(_places(other.images, other.rows[exact]))
        places = _places(split.images, split.rows[drafted])
        distance, _ = tree.query(places, p=np.inf, distance_upper_bound=NEAR + 0.5)
        candidates |= np.isfinite(distance)
    for position in drafted[candidates]:
        picture = split.images.picture(int(split.rows[position]))
        digests[position] = pixel_digest(picture.transpose(2, 0, 1), picture.shape[:2])
    return digests


def _places(images: ImageStore, rows: np.ndarray) -> np.ndarray:
    """Return float64 [n, 14]: sizes, far apart unless equal, and the means of the quarters."""
    looks = images.looks(rows)
    means = looks["quadrants"]
    if images.pixels is not None:
        parts = np.array_split(rows, len(rows) // 1024 + 1)
        means = np.concatenate([quadrants(images.pixels[part]) for part in parts])
    return np.concatenate([looks["size"] * 1000.0, means], axis=1)
