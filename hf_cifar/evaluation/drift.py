"""Drift: whether new pictures look like those that a model was validated on."""

from __future__ import annotations

import numpy as np
import torch

PERMUTATIONS = 999
MOST = 1000  # pictures of each side; more cost time and find smaller drifts than matter


def drift_p_value(before: torch.Tensor, now: torch.Tensor, seed: int = 0) -> float:
    """Return the p-value of the maximum mean discrepancy between two sets of features, by
    permutations (Gretton et al. 2012).

    The kernel is Gaussian with the median distance as its width. The least value is
    1 / (PERMUTATIONS + 1).

    before, now: float32 [n, D] and [m, D].
    """
    random = np.random.default_rng(seed)
    sides = [_some(side, random) for side in (before, now)]
    points = torch.cat(sides).double()
    squares = torch.cdist(points, points).square()
    width = squares[squares > 0].median() if (squares > 0).any() else torch.tensor(1.0)
    kernel = torch.exp(-squares / width).fill_diagonal_(0)
    n, m = len(sides[0]), len(sides[1])
    # Each column says which side every picture is on; the first column is the truth.
    order = np.stack([np.arange(n + m), *(random.permutation(n + m) for _ in range(PERMUTATIONS))])
    first = torch.from_numpy((order < n).T.astype(np.float64))
    second = 1 - first
    within_first = ((kernel @ first) * first).sum(0) / max(n * (n - 1), 1)
    within_second = ((kernel @ second) * second).sum(0) / max(m * (m - 1), 1)
    between = ((kernel @ first) * second).sum(0) / (n * m)
    discrepancy = within_first + within_second - 2 * between
    as_large = int((discrepancy[1:] >= discrepancy[0]).sum())
    return (1 + as_large) / (1 + PERMUTATIONS)


def _some(features: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    if len(features) <= MOST:
        return features
    return features[torch.from_numpy(random.choice(len(features), MOST, replace=False))]
