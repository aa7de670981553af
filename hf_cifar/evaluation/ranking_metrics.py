"""How well probabilities rank the classes, whatever the threshold, and how good answers are when
each class counts alike: for data whose classes are of different sizes.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def auroc(probabilities: np.ndarray, labels: np.ndarray, positive: int = -1) -> dict[str, Any]:
    """Return the area under the ROC curve: of the positive class where there are two, else the mean
    over the classes, each against the rest. Nothing where a class has no sample.

    probabilities: float64 [N, C]; rows sum to one. labels: int64 [N]. positive: of two classes.
    """
    from sklearn.metrics import roc_auc_score

    classes = probabilities.shape[1]
    if not _has_every_class(labels, classes):
        return {}
    if classes == 2:
        of_class = probabilities[:, positive]
        return {"auroc": float(roc_auc_score(labels == positive % 2, of_class))}
    score = roc_auc_score(
        labels, probabilities, multi_class="ovr", average="macro", labels=range(classes)
    )
    return {"auroc": float(score)}


def average_precision(
    probabilities: np.ndarray, labels: np.ndarray, positive: int = -1
) -> dict[str, Any]:
    """Return the average precision, the area under the precision-recall curve in steps: of the
    positive class where there are two, else the mean over the classes, each against the rest.
    Nothing where a class has no sample.

    For the arguments see `auroc`.
    """
    from sklearn.metrics import average_precision_score

    classes = probabilities.shape[1]
    if not _has_every_class(labels, classes):
        return {}
    if classes == 2:
        of_class = probabilities[:, positive]
        score = average_precision_score(labels == positive % 2, of_class)
    else:
        one_hot = labels[:, None] == np.arange(classes)
        score = average_precision_score(one_hot, probabilities, average="macro")
    return {"average_precision": float(score)}


def balanced_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return the mean over the classes that occur of the share of their samples that are right."""
    from sklearn.metrics import recall_score

    answers = probabilities.argmax(axis=1)
    score = recall_score(labels, answers, labels=np.unique(labels), average="macro")
    return {"balanced_accuracy": float(score)}


def _has_every_class(labels: np.ndarray, classes: int) -> bool:
    return len(np.unique(labels)) == classes > 1
