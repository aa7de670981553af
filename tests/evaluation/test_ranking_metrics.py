"""Metrics for classes of different sizes, against scikit-learn and against definitions written
out here.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    roc_auc_score,
)
from transformers import EvalPrediction

from hf_cifar.evaluation.metrics import classification_metrics, trainer_metrics
from hf_cifar.evaluation.ranking_metrics import auroc


def softmax(logits):
    exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponential / exponential.sum(axis=1, keepdims=True)


def predictions(classes, samples=60, seed=0):
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), random.integers(0, classes, samples - classes)])
    logits = random.normal(size=(samples, classes)) + 1.5 * np.eye(classes)[labels]
    return softmax(logits), labels


@pytest.mark.parametrize("positive", [0, 1])
def test_two_classes_are_ranked_by_the_positive_one(positive):
    p, y = predictions(2)
    values = classification_metrics(p, y, ["a", "b"], positive=positive)
    assert values["test_auroc"] == pytest.approx(roc_auc_score(y, p[:, 1]))
    truth, scores = y == positive, p[:, positive]
    expected = average_precision_score(truth, scores)
    assert values["test_average_precision"] == pytest.approx(expected)
    assert values["test_balanced_accuracy"] == balanced_accuracy_score(y, p.argmax(1))
    pairs = [(a > b) + (a == b) / 2 for a in scores[truth] for b in scores[~truth]]
    assert values["test_auroc"] == pytest.approx(np.mean(pairs))
    if positive == 1:  # the default
        assert classification_metrics(p, y, ["a", "b"]) == values


@pytest.mark.parametrize("classes", [3, 7])
def test_of_more_classes_each_is_ranked_against_the_rest(classes):
    p, y = predictions(classes)
    values = classification_metrics(p, y, [f"c{c}" for c in range(classes)])
    single = [
        (roc_auc_score(y == c, p[:, c]), average_precision_score(y == c, p[:, c]))
        for c in range(classes)
    ]
    means = np.mean(single, axis=0)
    assert [values["test_auroc"], values["test_average_precision"]] == pytest.approx(means)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 8), st.integers(1, 20), st.integers(0, 2**32))
def test_a_class_without_samples_leaves_no_ranking_and_no_warning(classes, samples, seed):
    random = np.random.default_rng(seed)
    y = random.integers(0, classes - 1, samples)
    p = softmax(random.normal(size=(samples, classes)))
    values = classification_metrics(p, y, [f"c{c}" for c in range(classes)])
    assert "test_auroc" not in values and "test_average_precision" not in values
    recalls = [np.mean(p.argmax(1)[y == c] == c) for c in np.unique(y)]
    assert values["test_balanced_accuracy"] == pytest.approx(np.mean(recalls))


def test_the_trainer_gets_a_further_metric_from_logits():
    p, y = predictions(4)
    prediction = EvalPrediction(predictions=np.log(p) + 3, label_ids=y)
    values = trainer_metrics(prediction, [auroc])
    expected = classification_metrics(p, y, list("abcd"))["test_auroc"]
    assert values.pop("auroc") == pytest.approx(expected)
    assert values == trainer_metrics(prediction)
