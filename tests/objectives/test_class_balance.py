"""Classes of different sizes: weights in the loss, and images drawn by class."""

import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from helpers.pictures import noise
from helpers.runs import CHECKPOINT_EVERY_3, assert_same_weights
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from hf_cifar.augmentation.mixing import soft_targets
from hf_cifar.data.class_weights import balanced_weights
from hf_cifar.errors import UserError
from hf_cifar.features.logistic_regression import fit_logistic_regression
from hf_cifar.objectives.classification import Classification
from hf_cifar.recipe.load import make_recipe


@pytest.fixture
def cells(tmp_path):
    """30 pictures of good cells and 8 with a defect."""
    for number in range(38):
        name = "defect" if number < 8 else "fine"
        path = tmp_path / "cells" / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(noise(number, 8, 8) // 2 + (64 if name == "defect" else 0)).save(path)
    return str(tmp_path / "cells")


def test_the_weights_are_scikit_learns_and_their_mean_is_one():
    labels = np.array([0] * 7 + [2] * 2 + [1])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    weights = balanced_weights(labels, 3)
    np.testing.assert_allclose(weights, expected)
    assert weights[labels].mean() == pytest.approx(1)
    np.testing.assert_allclose(balanced_weights(labels, 4), [*expected, 1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_of_a_whole_epoch_is_torchs_weighted_mean(soft, smoothing, cells):
    keys = {"dataset_name": cells, "class_weights": "balanced", "validation_fraction": 0.0}
    keys |= {"label_smoothing_factor": smoothing, "eval_strategy": "no"}
    objective = Classification(make_recipe("mine", keys))
    labels = torch.from_numpy(objective.data.train.labels)
    logits = torch.randn(len(labels), 2, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    weights = torch.from_numpy(balanced_weights(labels.numpy(), 2)).float()
    hard = labels
    if soft:
        labels = soft_targets(labels, labels.flip(0), torch.full((len(labels),), 0.7), 2)
        smooth = labels * (1 - smoothing) + smoothing / 2  # written out
        expected = -(weights * smooth * logits.log_softmax(1)).sum(1).mean()
    else:
        expected = F.cross_entropy(logits, hard, weight=weights, label_smoothing=smoothing)
    parts = [
        objective.loss({"logits": logits[i : i + 8]}, labels[i : i + 8], torch.tensor(len(hard)))
        for i in range(0, len(hard), 8)
    ]
    torch.testing.assert_close(sum(parts), expected)
    with torch.no_grad():  # evaluation weighs nothing
        plain = objective.loss({"logits": logits}, hard)
    torch.testing.assert_close(plain, F.cross_entropy(logits.detach(), hard))


def test_the_linear_method_finds_what_scikit_learn_finds():
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [60, 20, 10])
    features = random.normal(size=(90, 5)) + labels[:, None] * [0.5, 0, 0, 1, 0]
    scaled = (features - features.mean(0)) / np.sqrt(features.var(0).mean())
    strength, given = 0.1, torch.from_numpy(scaled).float()
    fitted = fit_logistic_regression(
        given[None],
        torch.from_numpy(labels),
        3,
        seed=0,
        strengths=(strength,),
        class_weights=torch.from_numpy(balanced_weights(labels, 3)).float(),
    )
    reference = LogisticRegression(
        C=1 / (strength * 90), class_weight="balanced", tol=1e-8, max_iter=10_000
    )
    expected = reference.fit(scaled, labels).predict_proba(scaled)
    np.testing.assert_allclose(fitted.logits(given).softmax(1).numpy(), expected, atol=1e-4)
    (score,) = fitted.scores
    assert 0 < score["nll"] < 3 and 0 < score["accuracy"] < 1


def settings(cells, **more):
    return {
        "dataset_name": cells,
        "max_train_samples": None,
        "max_eval_samples": None,
        "test_fraction": 0.2,
    } | more


def test_weighted_linear_answers_are_more_often_the_small_class(cells, tiny, train):
    plain, weighted = (
        train(kind, tiny("resnet"), method="linear", **settings(cells, class_weights=kind))
        for kind in ("none", "balanced")
    )
    answers = [np.sum(run.metrics["test_confusion_matrix"], 0)[0] for run in (plain, weighted)]
    assert answers[1] >= answers[0]
    with pytest.raises(AssertionError):
        assert_same_weights(plain, weighted)


def test_a_balanced_run_that_was_stopped_has_the_same_weights(cells, tiny, train):
    keys = settings(cells, sampler="balanced", num_train_epochs=3) | CHECKPOINT_EVERY_3
    whole = train("whole", tiny("resnet"), **keys)
    assert whole.metrics["global_step"] == 9  # 27 images: an epoch is as long as before
    stopped = train("stopped", tiny("resnet"), **keys)
    checkpoints = (stopped.path / "checkpoints").glob("checkpoint-*")
    shutil.rmtree(max(checkpoints, key=lambda path: int(path.name[11:])))
    (stopped.path / "metrics.json").unlink()
    assert_same_weights(whole, train("stopped", tiny("resnet"), **keys))
    shuffled = train("shuffled", tiny("resnet"), **keys | {"sampler": "shuffled"})
    with pytest.raises(AssertionError):
        assert_same_weights(whole, shuffled)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"class_weights": "balanced"}, "do the same; leave one of them out"),
        ({"method": "linear"}, "set `class_weights: balanced`"),
        ({"objective": "semi_supervised"}, "draws images in its own way"),
        ({"objective": "masked_autoencoder"}, "sampler: does nothing with"),
        ({"objective": "distillation", "teacher_views": "each_epoch"}, "teacher_views: plain"),
    ],
)
def test_what_can_not_be_balanced(keys, words):
    with pytest.raises(UserError, match=words):
        make_recipe("mine", {"sampler": "balanced"} | keys)
