"""Drift, accuracy without labels, and scores of strangers, on numbers whose answer is known."""

import numpy as np
import pytest
import torch

from hf_cifar.evaluation.drift import drift_p_value
from hf_cifar.evaluation.estimated_accuracy import accuracy_by_confidence, accuracy_by_transport
from hf_cifar.evaluation.left_out_classes import leave_classes_out, separation, without_class
from hf_cifar.evaluation.stranger_scores import SCORES, Known, stranger_scores


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clusters(count: int, spread: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(count) % 4
    means = 4 * torch.nn.functional.one_hot(labels, 16).float()
    return means + spread * normal(count, 16, seed=seed), labels


def head() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.eye(4, 16), torch.zeros(4)


def test_p_values_of_no_drift_are_spread_and_of_drift_are_least():
    same = [drift_p_value(normal(80, 8, seed=0), normal(60, 8, seed=1 + i)) for i in range(20)]
    assert sum(p < 0.05 for p in same) <= 3 and 0.2 < np.mean(same) < 0.8
    assert drift_p_value(normal(80, 8, seed=0), normal(60, 8, seed=1) + 0.7) == pytest.approx(0.001)
    assert drift_p_value(normal(80, 8, seed=0), 2 * normal(60, 8, seed=1)) == pytest.approx(0.001)


def test_expected_accuracy_falls_with_the_signal():
    weight, bias = head()

    def answers(signal: float, seed: int) -> tuple[torch.Tensor, np.ndarray]:
        labels = torch.arange(2000) % 4
        means = signal * torch.nn.functional.one_hot(labels, 16).float()
        logits = torch.addmm(bias, means + normal(2000, 16, seed=seed), weight.T)
        return logits, (logits.argmax(1) == labels).numpy()

    validation, correct = answers(3.0, 0)
    for signal in (3.0, 2.5, 2.0):
        logits, truth = answers(signal, 1)
        by_confidence = accuracy_by_confidence(validation, correct, logits)
        assert by_confidence == pytest.approx(truth.mean(), abs=0.06)
        by_transport = accuracy_by_transport(validation, torch.arange(2000) % 4, logits)
        assert by_transport == pytest.approx(truth.mean(), abs=0.1)  # it trusts confidence


def test_answering_one_class_to_everything_is_found_out_unless_no_other_class_comes():
    even, one_class = torch.arange(40) % 4, torch.zeros(40, dtype=torch.int64)
    right = 9.0 * torch.nn.functional.one_hot(even, 4)
    right[3] = right[4]  # a mistake, without which no temperature would be the best
    answers = torch.tensor([9.0, 0, 0, 0]).repeat(100, 1)
    assert accuracy_by_transport(right, even, answers) == pytest.approx(0.25, abs=0.05)
    right = 9.0 * torch.nn.functional.one_hot(one_class, 4)
    assert accuracy_by_transport(right, one_class, answers) == pytest.approx(1.0, abs=0.05)


def test_every_score_is_high_for_the_known_and_low_for_strangers():
    features, labels = clusters(200, 0.5, 0)
    known = Known(features, labels, *head())
    ours, theirs = clusters(100, 0.5, 1)[0], 0.5 * normal(100, 16, seed=2)
    scores = stranger_scores(known, ours), stranger_scores(known, theirs)
    assert tuple(scores[0]) == SCORES
    for name in SCORES:
        values = separation(scores[0][name], scores[1][name])
        assert values["auroc"] > 0.95 and values["fpr95"] < 0.4, name


def test_a_class_that_is_left_out_is_a_stranger():
    features, labels = clusters(200, 0.3, 0)
    known = Known(features, labels, *head())
    without = without_class(known, 1)
    assert sorted(without.labels.unique().tolist()) == [0, 1, 2] and len(without.bias) == 3
    logits = torch.addmm(without.bias, without.features, without.weight.T)
    assert torch.equal(logits.argmax(1), without.labels)
    aurocs = leave_classes_out(known, *clusters(100, 0.3, 1))
    assert set(aurocs) == set(SCORES) and min(aurocs.values()) > 0.9
