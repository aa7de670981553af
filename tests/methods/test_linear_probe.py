"""A linear probe is logistic regression on cached features, without gradient descent."""

import json

import numpy as np
import pytest
import torch
from helpers.runs import assert_same_weights, held_out_images, pipeline_probabilities, saved_weights
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from hf_cifar.features.logistic_regression import fit_logistic_regression


def test_the_penalty_with_the_best_held_out_score_is_chosen(tiny, train):
    run = train("run", tiny("resnet"), method="linear")
    scores = run.metrics["probe_scores"]
    best = min(scores, key=lambda score: score["nll"])
    assert run.metrics["probe_strength"] == best["strength"]
    assert [s["strength"] for s in scores] == sorted((s["strength"] for s in scores), reverse=True)
    assert 0 <= run.metrics["knn_accuracy"] <= 1
    assert run.metrics["features_runtime"] > 0 and run.metrics["train_runtime"] > 0


def test_scikit_learn_finds_the_same_classifier():
    """Its C is the inverse of the penalty times the number of images."""
    random = np.random.default_rng(0)
    labels = np.arange(90) % 3
    features = (random.normal(size=(90, 5)) + labels[:, None] * [1, 0, 0, 2, 0]).astype(np.float32)
    features = 7 * (features - features.mean(0)) / np.sqrt(features.var(0).mean()) + 3
    fitted = fit_logistic_regression(
        torch.from_numpy(features), torch.from_numpy(labels), 3, seed=0, strengths=(0.1,)
    )
    scaled = (features - features.mean(0)) / 7
    reference = LogisticRegression(C=1 / (0.1 * 90), tol=1e-8, max_iter=10_000)
    expected = reference.fit(scaled, labels).predict_proba(scaled)
    answers = fitted.logits(torch.from_numpy(features)).softmax(1).numpy()
    np.testing.assert_allclose(answers, expected, atol=1e-4)


@pytest.mark.parametrize("change", [lambda f: 1000 * f, lambda f: f + 50])
def test_offset_and_scale_of_the_features_change_nothing(change):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 8, generator=generator)
    labels = (features[:, 0] > 0).long() + (features[:, 1] > 0.5).long()
    fits = [fit_logistic_regression(f, labels, 3, seed=0) for f in (features, change(features))]
    assert fits[0].strength == fits[1].strength
    answers = [fits[0].logits(features), fits[1].logits(change(features))]
    torch.testing.assert_close(*answers, atol=2e-2, rtol=1e-2)


def test_a_class_with_one_image_is_fitted_without_cross_validation():
    features, labels = torch.eye(3), torch.arange(3)
    fitted = fit_logistic_regression(features, labels, 3, seed=0)
    assert fitted.logits(features).argmax(1).tolist() == [0, 1, 2]
    assert np.isnan(fitted.scores[0]["nll"])


def test_keys_of_gradient_descent_change_nothing_and_are_named(tiny, train, caplog):
    first = train("first", tiny("vit"), method="linear", num_train_epochs=2.0)
    keys = {"num_train_epochs": 5, "learning_rate": 1.0, "ema_decay": 0.9}
    with caplog.at_level("WARNING", "hf_cifar"):
        caplog.clear()
        second = train("second", tiny("vit"), method="linear", **keys)
    names = caplog.messages[-1].partition("has no use for ")[2].split(", ")
    assert {"num_train_epochs", "learning_rate", "ema_decay"} <= set(names)
    assert_same_weights(first, second)


@pytest.mark.parametrize("views", [1, 2])
def test_only_the_head_of_the_saved_model_differs_and_it_answers_as_scored(views, tiny, train):
    run = train("run", tiny("efficientnet"), method="linear", feature_views=views)
    before, after = load_file(tiny("efficientnet") / "model.safetensors"), saved_weights(run)
    changed = {n.rsplit(".", 1)[0] for n in after if not torch.equal(before[n], after[n])}
    assert changed == {"classifier"}
    images, labels = held_out_images(run)
    answers = pipeline_probabilities(run.path, images)
    assert (answers.argmax(1) == labels).mean() == run.metrics["test_accuracy"]
    json.dumps(run.metrics, allow_nan=False)
