"""Scores that tell pictures of a model's classes from strangers, by its features and logits.

A Space carries a copy of this file, so it imports nothing of this project.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize

SCORES = ("softmax", "energy", "knn", "mahalanobis")
NEIGHBOUR = 10  # the neighbour whose cosine counts
SHRINKAGE = 0.1  # of the shared covariance towards its mean variance
QUERIES_AT_ONCE = 1000


class Known(NamedTuple):
    """What a model knows: pictures of its classes, and its head.

    features: float32 [n, D]. labels: int64 [n]. weight: float32 [C, D]. bias: float32 [C].
    """

    features: torch.Tensor
    labels: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor


def stranger_scores(known: Known, features: torch.Tensor) -> dict[str, np.ndarray]:
    """Return float64 [n] for each of SCORES: high for pictures of the classes, low for strangers.

    softmax: the largest probability (Hendrycks and Gimpel 2017). energy: log-sum-exp of the logits
    (Liu et al. 2020). knn: cosine of the tenth nearest known picture (Sun et al. 2022).
    mahalanobis: minus the least distance to a class mean under the covariance within classes
    (Lee et al. 2018).
    """
    return {name: make_score(known, name)(features) for name in SCORES}


def make_score(known: Known, name: str) -> Callable[[torch.Tensor], np.ndarray]:
    """Return the function that gives one of SCORES, float64 [n], of features, float32 [n, D].

    What depends on the known pictures alone is computed here, once for all features.
    """
    if name == "knn":
        return _knn(known.features)
    if name == "mahalanobis":
        return _mahalanobis(known)
    largest = name == "softmax"

    def of_logits(features: torch.Tensor) -> np.ndarray:
        logits = torch.addmm(known.bias, features, known.weight.T).double()
        return (logits.softmax(1).amax(1) if largest else logits.logsumexp(1)).numpy()

    return of_logits


def _knn(references: torch.Tensor) -> Callable[[torch.Tensor], np.ndarray]:
    directions = normalize(references, dim=1)
    count = min(NEIGHBOUR, len(references))

    def score(features: torch.Tensor) -> np.ndarray:
        cosines = [
            (normalize(part, dim=1) @ directions.T).topk(count, dim=1).values[:, -1]
            for part in features.split(QUERIES_AT_ONCE)
        ]
        return torch.cat(cosines).double().numpy()

    return score


def _mahalanobis(known: Known) -> Callable[[torch.Tensor], np.ndarray]:
    present = known.labels.unique()
    means = torch.stack([known.features[known.labels == label].mean(0) for label in present])
    place = torch.searchsorted(present, known.labels)
    residuals = (known.features - means[place]).double()
    covariance = residuals.T @ residuals / len(residuals)
    level = covariance.diagonal().mean().clamp(min=1e-30)
    covariance = (1 - SHRINKAGE) * covariance
    covariance.diagonal().add_(SHRINKAGE * level)
    factor = torch.linalg.cholesky(covariance)

    def whiten(values: torch.Tensor) -> torch.Tensor:
        """Return values in the space where the covariance is the identity."""
        return torch.linalg.solve_triangular(factor, values.double().T, upper=False).T

    centres = whiten(means)
    return lambda features: -torch.cdist(whiten(features), centres).amin(1).numpy()
