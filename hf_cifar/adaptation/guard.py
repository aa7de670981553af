"""When to leave a model as it is.

Batch-norm statistics help where only the look of the pictures has changed. Where a batch holds one
class, they take away what tells that class from the others: the answers then spread over all
classes and become unsure. Their mutual information with the images shows that without labels. What
it is for mixed and for one-class batches is measured on the source.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import ks_2samp

from hf_cifar.adaptation.answers import information_by_batch
from hf_cifar.data.splits import Split
from hf_cifar.evaluation.classifier import Classifier

SIGNIFICANCE = 0.01  # of the two-sample test
SHARE = 0.4  # of the way from one-class to mixed batches of the source, which the target must pass
COLLAPSE = 0.5  # share of the predicted classes that must be left
MOST_TESTED = 2000  # images of each side in the two-sample test
SOURCE_BATCHES = 5  # mixed ones that are measured


def shift_p_value(source: np.ndarray, target: np.ndarray) -> float:
    """Return the p-value of "source and target have the same features".

    It is the smallest of Kolmogorov-Smirnov tests of each feature, with Bonferroni's correction
    (Rabanser et al. 2019). source: [n, D]. target: [m, D].
    """
    source, target = source[:MOST_TESTED], target[:MOST_TESTED]
    values = ks_2samp(source, target, axis=0, method="asymp").pvalue
    return float(min(1.0, np.min(values) * source.shape[1]))


def information_threshold(
    classifier: Classifier, source: Split, labels: np.ndarray, size: int
) -> float | None:
    """Return the least `information` of answers by a batch's own statistics that a mixed batch has,
    or None where it can't be told: without batch norms, or with too few images of any class.

    source: images of the place that the model was trained for. labels: int64 [n].
    """
    counts = np.bincount(labels)
    alone = [np.flatnonzero(labels == c)[:size] for c in np.argsort(-counts, kind="stable")[:5]]
    alone = [rows for rows in alone if len(rows) >= min(size, 20)]
    spread = np.linspace(0, len(source) - 1, min(len(source), SOURCE_BATCHES * size)).astype(int)
    # Every nth image, so that data sorted by class gives mixed batches.
    count = max(1, len(spread) // size)
    mixed = np.concatenate([spread[start::count][:size] for start in range(count)])
    several = information_by_batch(classifier, source, size, mixed)
    if several is None or not alone:
        return None
    single = [information_by_batch(classifier, source, size, rows) for rows in alone]
    one = float(np.mean([value for value in single if value is not None]))
    return one + SHARE * (several - one) if several > one else None
