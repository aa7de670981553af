"""The figures of models that give several labels, against those worked out by hand."""

import numpy as np
import pytest

from hf_cifar.errors import UserError
from hf_cifar.evaluation.multi_label_metrics import multi_label_metrics

TARGETS = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], bool)
PROBABILITIES = np.array([[0.9, 0.2, 0.1], [0.4, 0.8, 0.1], [0.6, 0.7, 0.1], [0.1, 0.3, 0.2]])


def test_figures_worked_out_by_hand():
    metrics = multi_label_metrics(PROBABILITIES, TARGETS, ["a", "b", "never"])
    # a: the order is +, -, +, -: precision 1 at the first and 2/3 at the second
    assert metrics["test_per_label"]["a"]["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert metrics["test_per_label"]["a"]["auroc"] == 0.75
    assert metrics["test_per_label"]["a"]["f1"] == 0.5
    assert metrics["test_per_label"]["b"]["f1"] == 1.0
    assert metrics["test_per_label"]["never"] == {"samples": 0}
    assert metrics["test_map"] == pytest.approx((5 / 6 + 1) / 2)
    assert metrics["test_auroc_macro"] == (0.75 + 1) / 2
    assert metrics["test_f1_macro"] == 0.75
    assert metrics["test_f1_micro"] == 2 * 3 / (2 * 3 + 1 + 1)
    assert metrics["test_accuracy"] == 0.5  # the first and the last picture
    low, high = metrics["test_accuracy_ci95"]
    assert low < 0.5 < high and metrics["test_samples"] == 4


def test_a_label_that_all_pictures_have_has_no_auroc():
    metrics = multi_label_metrics(np.full((3, 1), 0.6), np.ones((3, 1), bool), ["a"], prefix="x")
    assert "x_auroc_macro" not in metrics and metrics["x_map"] == 1 and metrics["x_accuracy"] == 1


def test_pictures_without_labels_can_be_right():
    metrics = multi_label_metrics(np.full((3, 2), 0.1), np.zeros((3, 2), bool), ["a", "b"])
    assert metrics["test_accuracy"] == 1 and metrics["test_f1_micro"] == 0
    assert "test_map" not in metrics and "test_f1_macro" not in metrics


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(UserError, match="no samples"):
        multi_label_metrics(np.zeros((0, 2)), np.zeros((0, 2), bool), ["a", "b"])
    with pytest.raises(UserError, match="not finite for 1 of 2 samples"):
        outputs = np.array([[0.1], [np.nan]])
        multi_label_metrics(outputs, np.zeros((2, 1), bool), ["a"])
