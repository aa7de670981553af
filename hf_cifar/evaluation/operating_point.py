"""The threshold of a two-class task: from which probability on a picture counts as positive.

It is chosen on validation for a specificity, kept in the run, and applied to test as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_cifar.errors import UserError
from hf_cifar.evaluation.metrics import wilson


@dataclass(frozen=True)
class OperatingPoint:
    """A picture is positive if the probability of `positive_class` is at least `threshold`.

    target_specificity: the share of negative validation pictures that stay below it, at least.
    """

    positive_class: str
    threshold: float
    target_specificity: float

    def to_config(self) -> dict[str, Any]:
        """Return what config.json and metrics.json hold of it."""
        return asdict(self)


def find_positive(label_names: Sequence[str], positive_class: str | None) -> int:
    """Return the number of the positive class: of `positive_class`, or of the last class.

    Raises UserError for a class that there is not.
    """
    if positive_class is None:
        return len(label_names) - 1
    if positive_class not in label_names:
        raise UserError(
            f"positive_class is {positive_class}, but the classes are {', '.join(label_names[:5])}"
            + (", ..." if len(label_names) > 5 else "")
        )
    return list(label_names).index(positive_class)


def choose_threshold(scores: np.ndarray, positive: np.ndarray, target_specificity: float) -> float:
    """Return the threshold with the highest sensitivity among those with the specificity.

    It lies in the middle between the lowest score that counts as positive and the highest below
    that, so that rounding moves no picture of the split across it.

    scores: float64 [N] in [0, 1], probabilities of the positive class. positive: bool [N], both
    kinds at least once.
    """
    from sklearn.metrics import roc_curve

    false_positives, _, thresholds = roc_curve(positive, scores, drop_intermediate=False)
    # Of the first threshold, infinity, no picture is positive; a number above 1 says the same.
    thresholds = np.minimum(thresholds, np.nextafter(1.0, 2.0))
    allowed = np.flatnonzero(1 - false_positives >= target_specificity - 1e-12)  # of rounding
    lowest = float(thresholds[allowed[-1]])
    below = scores[scores < lowest]
    highest = float(below.max()) if len(below) else 0.0
    middle = highest + (lowest - highest) / 2
    return middle if middle > highest else lowest


def operating_point_metrics(
    probabilities: np.ndarray, labels: np.ndarray, positive: int, threshold: float, prefix: str
) -> dict[str, Any]:
    """Return `_sensitivity` and `_specificity` at a threshold, each with its 95 % Wilson interval
    (`_ci95`, [low, high]), as far as the split has pictures of the kind.

    probabilities: float64 [N, 2]. labels: int64 [N]. positive: number of the positive class.
    """
    answers, truth = probabilities[:, positive] >= threshold, labels == positive
    metrics: dict[str, Any] = {}
    for name, rows, right in (
        ("sensitivity", truth, answers),
        ("specificity", ~truth, ~answers),
    ):
        if total := int(rows.sum()):
            correct = int((rows & right).sum())
            metrics[f"{prefix}_{name}"] = correct / total
            metrics[f"{prefix}_{name}_ci95"] = list(wilson(correct, total))
    return metrics


def read_operating_point(config: Any, labels: Sequence[str], where: str) -> OperatingPoint | None:
    """Return the operating point that a model's config holds, or None.

    labels: the model's. where: what messages call the config. Raises UserError for another value.
    """
    value = getattr(config, "operating_point", None)
    if value is None:
        return None
    try:
        point = OperatingPoint(**value)
        fits = len(labels) == 2 and point.positive_class in labels
        if not (fits and math.isfinite(point.threshold) and 0 < point.target_specificity < 1):
            raise ValueError
    except (TypeError, ValueError):
        raise UserError(
            f"{where}: operating_point is none of a model with these {len(labels)} classes; remove"
            " the key, or train the model again"
        ) from None
    return point
