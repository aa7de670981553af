"""Score the features of a frozen backbone, before any fine-tuning."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from hf_cifar.data.splits import Data
from hf_cifar.evaluation.knn import knn_accuracy
from hf_cifar.evaluation.known_pictures import first_images
from hf_cifar.features.frozen_backbone import FrozenBackbone
from hf_cifar.features.logistic_regression import STRENGTHS, fit_logistic_regression
from hf_cifar.training.feature_monitor import measures


@dataclass(frozen=True)
class FrozenScores:
    """Scores on validation of classifiers on frozen features.

    train_images: that they were fitted on. effective_rank: of the validation images' features.
    features: float32 [n, D], those. fit_seconds: of logistic regression, for each training image.
    """

    train_images: int
    knn_accuracy: float
    probe_accuracy: float
    effective_rank: float
    features: np.ndarray
    fit_seconds: float


def frozen_scores(frozen: FrozenBackbone, data: Data, most_train: int, seed: int) -> FrozenScores:
    """Return nearest neighbours and logistic regression on features of at most `most_train` images.

    Features come from the cache where they are there. seed: of the folds of logistic regression.
    """
    assert data.validation is not None
    train, classes = first_images(data.train, most_train), len(data.label_names)
    features, validation = frozen.features(train), np.array(frozen.features(data.validation))
    start = time.perf_counter()
    head = fit_logistic_regression(
        torch.from_numpy(np.array(features))[None].to(frozen.device),
        torch.from_numpy(train.labels).to(frozen.device),
        classes,
        seed=seed,
        strengths=STRENGTHS[::2],
    )
    seconds = time.perf_counter() - start
    answers = head.logits(torch.from_numpy(validation).to(frozen.device)).argmax(1).cpu().numpy()
    truth = data.validation.labels
    return FrozenScores(
        train_images=len(train),
        knn_accuracy=knn_accuracy(features, train.labels, validation, truth, device=frozen.device),
        probe_accuracy=float((answers == truth).mean()),
        effective_rank=measures(validation, truth, validation)["effective_rank"],
        features=validation,
        fit_seconds=seconds / len(train),
    )
