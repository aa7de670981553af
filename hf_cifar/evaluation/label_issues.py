"""Labels that are likely wrong, by confident learning on features (Northcutt et al. 2021)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from hf_cifar.errors import UserError
from hf_cifar.features.logistic_regression import out_of_fold_probabilities


class LabelIssues(NamedTuple):
    """scores: float64 [n], the probability of the given label by a classifier that has not seen the
    image; low is suspect. suggested: int64 [n], the most probable class. wrong: int64 [k], places
    of the labels that are likely wrong, worst first.
    """

    scores: np.ndarray
    suggested: np.ndarray
    wrong: np.ndarray


def check_cleanlab() -> None:
    """Raise UserError unless cleanlab is installed."""
    try:
        import cleanlab  # noqa: F401
    except ImportError:
        raise UserError(
            "audit: needs the package cleanlab; install it with `pip install 'hf-cifar[audit]'`"
        ) from None


def find_label_issues(
    features: torch.Tensor, labels: np.ndarray, classes: int, seed: int
) -> LabelIssues:
    """Return which labels are likely wrong.

    features: float32 [n, D]. labels: int64 [n], at least two of each class.
    """
    from cleanlab.filter import find_label_issues as cleanlab_issues
    from cleanlab.rank import get_label_quality_scores

    device_labels = torch.from_numpy(labels).to(features.device)
    probabilities = out_of_fold_probabilities(features, device_labels, classes, seed=seed)
    answers = probabilities.double().cpu().numpy()
    answers /= answers.sum(1, keepdims=True)
    scores = get_label_quality_scores(labels, answers, method="self_confidence")
    wrong = cleanlab_issues(labels, answers, return_indices_ranked_by="self_confidence", n_jobs=1)
    return LabelIssues(scores, answers.argmax(1), np.asarray(wrong, dtype=np.int64))
