"""The accuracy to expect on pictures without labels."""

from __future__ import annotations

import numpy as np
import torch

from hf_cifar.evaluation.calibration import fit_temperature

MOST = 1000  # pictures that are assigned to classes; the time grows with their cube


def accuracy_by_confidence(
    validation: torch.Tensor, correct: np.ndarray, now: torch.Tensor
) -> float:
    """Return the average thresholded confidence (Garg et al. 2022): the share whose negative
    entropy is above the threshold that as large a share of validation lies above as the model gets
    right there. It makes no assumption about how often each class comes.

    validation, now: logits, float32 [n, C] and [m, C]. correct: bool [n].
    """
    scores, new_scores = _negative_entropy(validation), _negative_entropy(now)
    threshold = np.quantile(scores, 1 - correct.mean())
    return float((new_scores >= threshold).mean())


def accuracy_by_transport(
    validation: torch.Tensor, labels: torch.Tensor, now: torch.Tensor
) -> float:
    """Return the confidence that remains when the classes have to come as often as in validation
    (confidence optimal transport, Lu et al. 2023): each picture is assigned to a class, so that
    the mean probability of the assigned classes is highest.

    A model that answers a few classes to everything is found out, however confident it is. Where
    other classes come than in validation, the result is far too low. The probabilities are
    calibrated on validation first.

    validation, now: logits, float32 [n, C] and [m, C]; of more than 1,000 new pictures, 1,000
    count, drawn at random. labels: of validation, int64 [n].
    """
    from scipy.optimize import linear_sum_assignment

    temperature = fit_temperature(validation.double().softmax(1).numpy(), labels.numpy())
    rows = np.random.default_rng(0).permutation(len(now))[:MOST]
    logits = now[torch.from_numpy(rows)].double()
    probabilities = (logits / temperature).softmax(1).numpy()
    # A class for each picture: those at evenly spread places of the sorted labels of validation.
    ordered = np.sort(labels.numpy())
    places = (np.arange(len(rows)) + 0.5) / len(rows) * len(ordered)
    gains = probabilities[:, ordered[places.astype(np.int64)]]
    return float(gains[linear_sum_assignment(gains, maximize=True)].mean())


def _negative_entropy(logits: torch.Tensor) -> np.ndarray:
    logs = logits.double().log_softmax(1)
    return (logs.exp() * logs).sum(1).numpy()
