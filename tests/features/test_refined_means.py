"""Class means, and their refinement on images without labels."""

import numpy as np
import pytest
import torch

from hf_cifar.evaluation.few_shot import fit_in_span
from hf_cifar.features.class_means import fit_class_means
from hf_cifar.features.logistic_regression import STRENGTHS, fit_logistic_regression
from hf_cifar.features.refined_means import Refiner


def clusters(images: int, spread: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features [images, 300] of three classes, around means of their own, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % 3
    means = 3 * torch.nn.functional.one_hot(labels, 300).float()
    return means + spread * torch.randn(images, 300, generator=generator) + 1, labels


def accuracy(head, features, labels) -> float:
    return float((head.logits(features).argmax(1) == labels).double().mean())


def test_means_decide_by_the_largest_cosine():
    features, labels = clusters(30, 0.3)
    head = fit_class_means(features, labels, 3)
    centred = (features - features.mean(0)).numpy()
    directions = np.stack(
        [
            sum(row / np.linalg.norm(row) for row in centred[labels.numpy() == label])
            for label in range(3)
        ]
    )
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    expected = (centred @ directions.T).argmax(1)
    assert head.logits(features).argmax(1).tolist() == expected.tolist()


def test_images_without_labels_refine_the_means_of_clusters():
    few, few_labels = clusters(3, 0.5, seed=1)
    unlabelled, _ = clusters(600, 0.5, seed=2)
    test, truth = clusters(300, 0.5, seed=3)
    everything = torch.ones(1, 3, dtype=torch.bool)
    refined = [heads[0] for heads in Refiner(unlabelled).refine(few, few_labels, 3, everything)]
    before = accuracy(fit_class_means(few, few_labels, 3), test, truth)
    assert before < 0.9
    assert all(accuracy(head, test, truth) > before + 0.05 for head in refined)


def test_every_subset_is_refined_as_if_it_were_alone():
    few, labels = clusters(12, 0.5, seed=1)
    unlabelled, _ = clusters(200, 0.5, seed=2)
    subsets = torch.ones(2, 12, dtype=torch.bool)
    subsets[1, :3] = False
    refiner = Refiner(unlabelled)
    together = refiner.refine(few, labels, 3, subsets)
    alone = refiner.refine(few[3:], labels[3:], 3, torch.ones(1, 9, dtype=torch.bool))
    for both, (one,) in zip(together, alone, strict=True):
        scale = both[1].weight.norm() / one.weight.norm()
        torch.testing.assert_close(both[1].weight, one.weight * scale, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("images", [9, 60])
def test_logistic_regression_in_the_span_of_few_images_is_the_same(images):
    features, labels = clusters(images, 1.0)
    head, held_out = fit_in_span(features, labels, 3, seed=0)
    fitted = fit_logistic_regression(features[None], labels, 3, seed=0, strengths=STRENGTHS)
    test, _ = clusters(100, 1.0, seed=5)
    torch.testing.assert_close(
        head.logits(test).softmax(1), fitted.logits(test).softmax(1), atol=5e-3, rtol=0.05
    )
    assert held_out == next(
        s["accuracy"] for s in fitted.scores if s["strength"] == fitted.strength
    )
