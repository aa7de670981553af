"""Weights that let classes of different sizes count alike."""

from __future__ import annotations

import numpy as np


def balanced_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return float64 [C], the weight of each class: n / (C * n_c), scikit-learn's `balanced`.

    The mean weight of the images is one. A class without images has the weight one and does not
    count in C.

    labels: int64 [n] of the training images.
    """
    from sklearn.utils.class_weight import compute_class_weight

    present, weights = np.unique(labels), np.ones(classes)
    weights[present] = compute_class_weight("balanced", classes=present, y=labels)
    return weights
