"""The cross-entropy of classification: torch's, over accumulated batches, smoothed and mixed."""

import pytest
import torch
from torch.nn import functional as F

from hf_cifar.augmentation.mixing import soft_targets
from hf_cifar.objectives.classification import Classification
from hf_cifar.recipe.fields import TRAINING_DEFAULTS
from hf_cifar.recipe.recipe import Recipe


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_is_torchs_mean_over_the_accumulated_batch(soft, smoothing):
    training = TRAINING_DEFAULTS | {"label_smoothing_factor": smoothing}
    objective = Classification(Recipe(dataset_name="sample", training=training))
    torch.manual_seed(0)
    logits = torch.randn(12, 10, requires_grad=True)
    labels = torch.randint(10, (12,))
    if soft:
        labels = soft_targets(labels, torch.randint(10, (12,)), torch.rand(12), 10)
    want = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    if soft:  # written out
        smooth = labels * (1 - smoothing) + smoothing / 10
        torch.testing.assert_close(want, -(smooth * logits.log_softmax(1)).sum(1).mean())
    torch.testing.assert_close(objective.loss({"logits": logits}, labels), want)
    parts = [
        objective.loss({"logits": logits[i : i + 4]}, labels[i : i + 4], torch.tensor(12))
        for i in range(0, 12, 4)
    ]
    torch.testing.assert_close(sum(parts), want)
    with torch.no_grad():  # evaluation smooths nothing
        torch.testing.assert_close(
            objective.loss({"logits": logits}, labels), F.cross_entropy(logits, labels)
        )
