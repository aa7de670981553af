"""Logistic regression finds what scikit-learn finds, whatever the features' offset and scale, and
is scored on images that it has not seen.
"""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from hf_cifar.features.logistic_regression import fit_logistic_regression


def test_scikit_learn_finds_the_same_classifier():
    random = np.random.default_rng(0)
    labels = np.arange(90) % 3
    features = random.normal(size=(90, 5)) + labels[:, None] * [1, 0, 0, 2, 0]
    scaled = (features - features.mean(0)) / np.sqrt(features.var(0).mean())
    given = torch.from_numpy(7 * scaled + 3).float()
    strength = 0.1
    fitted = fit_logistic_regression(
        given[None], torch.from_numpy(labels), 3, seed=0, strengths=(strength,)
    )
    # Its C weighs the sum of the losses, the strength here weighs the penalty beside their mean.
    reference = LogisticRegression(C=1 / (strength * 90), tol=1e-8, max_iter=10_000)
    expected = reference.fit(scaled, labels).predict_proba(scaled)
    np.testing.assert_allclose(fitted.logits(given).softmax(1).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize(
    "change", [lambda features: 1000 * features, lambda features: features + 50]
)
def test_offset_and_scale_of_the_features_change_nothing(change):
    features = torch.randn(1, 60, 8, generator=torch.Generator().manual_seed(0))
    labels = (features[0, :, 0] > 0).long() + (features[0, :, 1] > 0.5).long()
    fits = [fit_logistic_regression(f, labels, 3, seed=0) for f in (features, change(features))]
    assert fits[0].strength == fits[1].strength
    answers = [fits[0].logits(features[0]), fits[1].logits(change(features[0]))]
    torch.testing.assert_close(*answers, atol=2e-2, rtol=1e-2)


def test_all_views_of_an_image_are_held_out_together():
    """Otherwise an image with a random label is known from its other view."""
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(1, 80, 200, generator=generator).expand(3, -1, -1)
    labels = torch.randint(2, (80,), generator=generator)
    fitted = fit_logistic_regression(views, labels, 2, seed=0)
    assert all(score["accuracy"] < 0.75 for score in fitted.scores)
    assert min(score["nll"] for score in fitted.scores) > 0.9 * math.log(2)


def test_a_class_with_one_image_is_fitted_without_cross_validation():
    features, labels = torch.eye(3), torch.arange(3)
    fitted = fit_logistic_regression(features[None], labels, 3, seed=0)
    assert fitted.logits(features).argmax(1).tolist() == [0, 1, 2]
    assert fitted.scores == []
