"""k-nearest-neighbour accuracy on features."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


def knn_accuracy(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, truth: np.ndarray, k: int = 20
) -> float:
    """Accuracy of a cosine k-nearest-neighbour vote weighted by exp(similarity / 0.07) (Wu et al.
    2018; DINO's k = 20).

    train, test: float32 [n, D]; labels, truth: int64 [n].
    """
    reference = nn.functional.normalize(torch.from_numpy(np.array(train)), dim=1)
    votes_of = nn.functional.one_hot(torch.from_numpy(labels)).float()
    right = 0
    for start in range(0, len(test), 1000):
        query = nn.functional.normalize(
            torch.from_numpy(np.array(test[start : start + 1000])), dim=1
        )
        similarity, nearest = (query @ reference.T).topk(min(k, len(reference)), dim=1)
        votes = (votes_of[nearest] * (similarity / 0.07).exp()[..., None]).sum(1)
        right += int((votes.argmax(1).numpy() == truth[start : start + 1000]).sum())
    return right / len(test)
