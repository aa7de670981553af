"""Scores that tell pictures of a model's classes from strangers, by its features and logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize

from hf_cifar.features.logistic_regression import fit_logistic_regression

SCORES = ("softmax", "energy", "knn", "mahalanobis")
NEIGHBOUR = 10  # the neighbour whose cosine counts
STRENGTH = 0.01  # of the penalty of a head without a class; to choose it would take minutes
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

    def without(self, label: int) -> Known:
        """Return what a model that lacks one class would know: the other classes, with a head that
        is fitted to them anew, since the old one has learned what they are not.
        """
        rows, classes = self.labels != label, torch.arange(len(self.bias)) != label
        numbers = torch.cumsum(classes, 0) - 1
        features, labels = self.features[rows], numbers[self.labels[rows]]
        head = fit_logistic_regression(
            features[None], labels, len(self.bias) - 1, seed=0, strengths=(STRENGTH,)
        )
        return Known(features, labels, head.weight, head.bias)


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


def separation(known: np.ndarray, strangers: np.ndarray) -> dict[str, float]:
    """Return `auroc`, and `fpr95`: the share of strangers that are accepted at the threshold that
    accepts 95 % of the known.

    known, strangers: scores, float64 [n] and [m].
    """
    from sklearn.metrics import roc_auc_score

    truth = np.concatenate([np.ones(len(known)), np.zeros(len(strangers))])
    auroc = roc_auc_score(truth, np.concatenate([known, strangers]))
    threshold = np.quantile(known, 0.05)
    return {"auroc": float(auroc), "fpr95": float((strangers >= threshold).mean())}


def leave_classes_out(
    known: Known, features: torch.Tensor, labels: torch.Tensor
) -> dict[str, float]:
    """Return for each of SCORES the mean AUROC when each class in turn is the stranger.

    Features of a fine-tuned backbone still know the class that is left out, so it counts as a
    stranger that is somewhat easier to tell than others.

    features: float32 [n, D] of pictures that the model was not trained on. labels: int64 [n].
    """
    values: dict[str, list[float]] = {name: [] for name in SCORES}
    for label in labels.unique().tolist():
        scores = stranger_scores(known.without(label), features)
        strange = (labels == label).numpy()
        for name, score in scores.items():
            values[name].append(separation(score[~strange], score[strange])["auroc"])
    return {name: float(np.mean(aurocs)) for name, aurocs in values.items()}
