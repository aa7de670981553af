"""Class means that images without labels have a share in."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize, one_hot

from hf_cifar.features.class_means import LinearHead, cosine_head

DIMENSIONS = 256  # of the features' principal axes that are looked at, for speed
# Variances along the axes are evened out: divided by themselves plus this part of the largest.
SHRINKAGES = (0.1, 0.01)
FIRST_ROUNDS, FIRST_SHARPNESS = 2, 20.0  # as the features are: the start is better there
ROUNDS, SHARPNESS = 5, 40.0  # with variances evened out


class Refiner:
    """Refines class means on unlabelled images by soft k-means (Ren et al. 2018), in a space where
    the images' variance is evened out.

    An unlabelled image counts for each class by the softmax of SHARPNESS times its cosines with the
    class means; a labelled image counts for its own class alone.
    """

    def __init__(self, unlabelled: torch.Tensor) -> None:
        """Find the principal axes of `unlabelled`, float32 [m, D]."""
        self.centre = unlabelled.mean(0)
        centred = unlabelled - self.centre
        covariance = (centred.T @ centred / len(centred)).double()
        variances, axes = torch.linalg.eigh(covariance)
        variances = variances[-DIMENSIONS:].float().clamp(min=0)
        axes = axes[:, -DIMENSIONS:].float()
        self.bases = [axes] + [
            axes * (variances + shrinkage * variances.max()).clamp(min=1e-30).rsqrt()
            for shrinkage in SHRINKAGES
        ]
        self.points = [normalize(centred @ basis, dim=1) for basis in self.bases]

    def refine(
        self, features: torch.Tensor, labels: torch.Tensor, classes: int, subsets: torch.Tensor
    ) -> list[list[LinearHead]]:
        """Return a classifier for each of SHRINKAGES and each subset of the labelled images.

        features: float32 [n, D]. labels: int64 [n]. subsets: bool [B, n], each with every class.
        """
        # [B * C, n]: which labelled images count for each class of each subset
        member = subsets[:, None, :] & one_hot(labels, classes).T.bool()[None]
        member = member.flatten(0, 1).float()
        known = [
            member @ normalize((features - self.centre) @ basis, dim=1) for basis in self.bases
        ]
        start = normalize(known[0], dim=1)
        for _ in range(FIRST_ROUNDS):
            start = self._round(0, 0, start, known, classes, FIRST_SHARPNESS)
        heads = []
        for space in range(1, len(self.bases)):
            directions = self._round(0, space, start, known, classes, FIRST_SHARPNESS)
            for _ in range(ROUNDS):
                directions = self._round(space, space, directions, known, classes, SHARPNESS)
            heads.append([self._head(space, part, features) for part in directions.split(classes)])
        return heads

    def _round(
        self,
        space: int,
        target: int,
        directions: torch.Tensor,
        known: list[torch.Tensor],
        classes: int,
        sharpness: float,
    ) -> torch.Tensor:
        """Return directions [B * C, R] in space `target` from the shares by those in `space`."""
        # Images along the last axis: a softmax over so few classes takes a tenth of the time there.
        logits = (sharpness * directions @ self.points[space].T).unflatten(0, (-1, classes))
        shares = logits.softmax(1).flatten(0, 1)
        return normalize(known[target] + shares @ self.points[target], dim=1)

    def _head(self, space: int, directions: torch.Tensor, features: torch.Tensor) -> LinearHead:
        return cosine_head(
            normalize(directions @ self.bases[space].T, dim=1), self.centre, features
        )
