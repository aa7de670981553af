"""Pictures that a data set holds twice, exactly by their pixels or nearly by their features."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize

NEAR_COSINE = 0.95  # of features around their mean, from which two pictures are near duplicates
QUERIES_AT_ONCE = 1000
NEIGHBOURS = 10  # whose mean distance says how far out a picture lies


class Pair(NamedTuple):
    """Two pictures by their places, first < second. kind: exact or near. cosine: of features."""

    first: int
    second: int
    kind: str
    cosine: float


class Neighbourhood(NamedTuple):
    """pairs: duplicates, exact ones first, then the most alike. distance: float32 [n], mean cosine
    distance to the NEIGHBOURS nearest pictures; far is an outlier.
    """

    pairs: list[Pair]
    distance: np.ndarray


def find_neighbours(
    features: torch.Tensor,
    digests: np.ndarray,
    same_pixels: Callable[[int, int], bool],
) -> Neighbourhood:
    """Return duplicates and distances of n pictures.

    Equal digests and near features only name candidates; a pair is exact if `same_pixels` says so.

    features: float32 [n, D]. digests: uint64 [n], equal for equal pixels. same_pixels: compares the
    pictures of two places.
    """
    directions = normalize(features - features.mean(0), dim=1)
    pairs: dict[tuple[int, int], float] = {}
    distance = np.empty(len(features), np.float32)
    count = min(NEIGHBOURS + 1, len(features))
    for start in range(0, len(features), QUERIES_AT_ONCE):
        part = directions[start : start + QUERIES_AT_ONCE]
        cosines, nearest = (part @ directions.T).topk(count, dim=1)
        # The nearest of all is the picture itself, or a duplicate of it with the same features.
        others = cosines[:, 1:] if count > 1 else cosines
        distance[start : start + len(part)] = (1 - others.mean(1)).cpu().numpy()
        rows, columns = (cosines >= NEAR_COSINE).nonzero(as_tuple=True)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            first, second = start + row, int(nearest[row, column])
            if first != second:
                pairs[min(first, second), max(first, second)] = float(cosines[row, column])
    for first, second in _equal(digests):
        pairs.setdefault((first, second), float(directions[first] @ directions[second]))
    duplicates = [
        Pair(first, second, "exact" if same_pixels(first, second) else "near", cosine)
        for (first, second), cosine in pairs.items()
    ]
    # Equal digests of unequal pixels (drafts of large JPEGs) with unlike features are no pair.
    duplicates = [pair for pair in duplicates if pair.kind == "exact" or pair.cosine >= NEAR_COSINE]
    duplicates.sort(key=lambda pair: (pair.kind != "exact", -pair.cosine, pair.first, pair.second))
    return Neighbourhood(duplicates, distance)


def _equal(digests: np.ndarray) -> list[tuple[int, int]]:
    """Return each place that has the digest of an earlier one, with the first such."""
    order = np.argsort(digests, kind="stable")
    pairs, first = [], 0
    for place in range(1, len(order)):
        if digests[order[place]] != digests[order[first]]:
            first = place
        else:
            pairs.append((int(order[first]), int(order[place])))
    return pairs
