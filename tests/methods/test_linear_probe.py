"""A linear probe is logistic regression on cached features, without gradient descent."""

import json

import pytest
import torch
from helpers.runs import assert_same_weights, held_out_images, pipeline_probabilities, saved_weights
from safetensors.torch import load_file


def test_the_penalty_with_the_best_held_out_score_is_chosen(tiny, train):
    run = train("run", tiny("resnet"), method="linear")
    scores = run.metrics["probe_scores"]
    best = min(scores, key=lambda score: score["nll"])
    assert run.metrics["probe_strength"] == best["strength"]
    assert [s["strength"] for s in scores] == sorted((s["strength"] for s in scores), reverse=True)
    assert 0 <= run.metrics["knn_accuracy"] <= 1
    assert run.metrics["features_runtime"] > 0 and run.metrics["train_runtime"] > 0


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
