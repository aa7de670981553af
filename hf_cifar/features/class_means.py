"""Nearest class mean by cosine: a linear classifier from a few labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import normalize, one_hot

SHARPNESS = 20.0  # of the probabilities: exp(20 * cosine)


class LinearHead(NamedTuple):
    """A linear classifier on features. weight: float32 [C, D]. bias: float32 [C]."""

    weight: torch.Tensor
    bias: torch.Tensor

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return float32 [n, C] for features [n, D]."""
        return torch.addmm(self.bias, features, self.weight.T)


def fit_class_means(features: torch.Tensor, labels: torch.Tensor, classes: int) -> LinearHead:
    """Return the classifier by the mean directions of the classes (SimpleShot, Wang et al. 2019).

    Features are centred on their mean first.

    features: float32 [n, D]. labels: int64 [n], with every class.
    """
    centre = features.mean(0)
    sums = one_hot(labels, classes).float().T @ normalize(features - centre, dim=1)
    return cosine_head(normalize(sums, dim=1), centre, features)


def cosine_head(
    directions: torch.Tensor, centre: torch.Tensor, features: torch.Tensor
) -> LinearHead:
    """Return the linear classifier that decides for the class with the largest cosine.

    Its logits are SHARPNESS * cosine for a feature as far from the centre as `features`, float32
    [n, D], are on average.

    directions: float32 [C, D], of length 1. centre: float32 [D], taken from features first.
    """
    distance = (features - centre).norm(dim=1).mean().clamp(min=1e-12)
    weight = directions * (SHARPNESS / distance)
    return LinearHead(weight, -weight @ centre)
