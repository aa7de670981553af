"""k-nearest-neighbour accuracy against scikit-learn's classifier."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from hf_cifar.evaluation.knn import knn_accuracy


def make_features(rng, count, centres):
    labels = rng.integers(0, len(centres), count)
    values = centres[labels] + rng.normal(size=(count, centres.shape[1]))
    return values.astype(np.float32), labels.astype(np.int64)


@pytest.mark.parametrize("references", [5, 700])
def test_the_votes_are_scikit_learns(references):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(7, 24)) * 0.5
    train, labels = make_features(rng, references, centres)
    test, truth = make_features(rng, 2300, centres)  # more than are compared at a time
    classifier = KNeighborsClassifier(
        min(20, references), metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)
    )
    expected = (classifier.fit(train, labels).predict(test) == truth).mean()
    assert knn_accuracy(train, labels, test, truth) == pytest.approx(expected, abs=1 / 2300)
