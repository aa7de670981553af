"""How well scores tell a model's classes from strangers, measured on classes that are left out."""

from __future__ import annotations

import numpy as np
import torch

from hf_cifar.evaluation.stranger_scores import SCORES, Known, stranger_scores
from hf_cifar.features.logistic_regression import fit_logistic_regression

STRENGTH = 0.01  # of the penalty of a head without a class; to choose it would take minutes


def without_class(known: Known, label: int) -> Known:
    """Return what a model that lacks one class would know: the other classes, with a head that is
    fitted to them anew, since the old one has learned what they are not.
    """
    rows, classes = known.labels != label, torch.arange(len(known.bias)) != label
    numbers = torch.cumsum(classes, 0) - 1
    features, labels = known.features[rows], numbers[known.labels[rows]]
    head = fit_logistic_regression(
        features[None], labels, len(known.bias) - 1, seed=0, strengths=(STRENGTH,)
    )
    return Known(features, labels, head.weight, head.bias)


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
        scores = stranger_scores(without_class(known, label), features)
        strange = (labels == label).numpy()
        for name, score in scores.items():
            values[name].append(separation(score[~strange], score[strange])["auroc"])
    return {name: float(np.mean(aurocs)) for name, aurocs in values.items()}
