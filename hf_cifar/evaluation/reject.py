"""When a picture is none of a model's classes: the score and its threshold, from validation."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from hf_cifar.errors import UserError
from hf_cifar.evaluation.known_pictures import KnownPictures, Reject
from hf_cifar.evaluation.left_out_classes import leave_classes_out
from hf_cifar.evaluation.stranger_scores import make_score, stranger_scores

NONE_OF_THESE = "none of these"
FEWEST = 20  # validation pictures that a threshold is worth anything with


def choose_reject(pictures: KnownPictures, share: float, where: str) -> KnownPictures:
    """Return the pictures with the score that does best when each class in turn is a stranger, and
    the threshold that `share` of the validation pictures lie below.

    where: what a message calls the run. Raises UserError for too few validation pictures, and for
    two classes, of which none can be left out.
    """
    if len(pictures.labels) < FEWEST:
        raise UserError(
            f"{where}: {len(pictures.labels)} validation pictures say too little; train with a"
            f" validation_fraction that gives {FEWEST} at least"
        )
    if len(pictures.known.bias) < 3:
        raise UserError(
            f"{where}: with two classes none can be left out to choose a score; it needs three"
        )
    aurocs = leave_classes_out(pictures.known, pictures.validation, pictures.labels)
    best = max(aurocs, key=lambda name: aurocs[name])
    scores = stranger_scores(pictures.known, pictures.validation)[best]
    threshold = float(np.quantile(scores, share))
    return dataclasses.replace(pictures, reject=Reject(best, threshold, share, aurocs))


class Rejecter:
    """Says of features whether their pictures are none of the classes."""

    def __init__(self, pictures: KnownPictures) -> None:
        assert pictures.reject is not None
        self.reject = pictures.reject
        self._score = make_score(pictures.known, self.reject.score)
        self.validation = np.sort(self._score(pictures.validation))

    def judge(self, features: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return bool [n], whether the pictures are strangers, and float64 [n], their strangeness:
        the share of validation pictures that look more like the classes.

        A picture is a stranger from 1 - `reject.share` on. features: float32 [n, D].
        """
        scores = self._score(features)
        below = np.searchsorted(self.validation, scores, side="left")
        return scores < self.reject.threshold, 1 - below / len(self.validation)
