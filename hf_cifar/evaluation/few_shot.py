"""How far a frozen backbone gets with a few labels a class: heads on its features."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize, one_hot

from hf_cifar.data.load import check_classes, load_data
from hf_cifar.data.splits import Data, samples_per_class
from hf_cifar.errors import UserError
from hf_cifar.evaluation.knn import QUERIES_AT_ONCE, knn_votes
from hf_cifar.features.class_means import LinearHead, fit_class_means
from hf_cifar.features.frozen_backbone import FrozenBackbone, load_frozen
from hf_cifar.features.logistic_regression import STRENGTHS, fit_logistic_regression
from hf_cifar.features.refined_means import Refiner
from hf_cifar.models.load import Backbone
from hf_cifar.recipe.recipe import Recipe

log = logging.getLogger(__name__)
MOST_UNLABELLED = 20_000  # images that refine; more change the means by less than a draw does
LOGISTIC_FROM = 5  # images a class; held-out images are too few to tell means and logistic apart
FOLDS = 5  # most parts of the labelled images that are held out in turn


@dataclass(frozen=True)
class Head:
    """A classifier on features.

    method: means, logistic or refined. held_out: its accuracy on labelled images held out; None
    where there is one image a class. correct: bool [n], which of them it gets right, where known.
    """

    method: str
    linear: LinearHead
    held_out: float | None
    correct: np.ndarray | None = None


@dataclass(frozen=True)
class FewShotData:
    """Features of the images to draw labels from, and of the test images.

    pool: float32 [n, D] on the device. test: float32 [m, D] there. refiner: None where images
    without labels are not used.
    """

    recipe: Recipe
    data: Data
    frozen: FrozenBackbone
    backbone: Backbone
    pool: torch.Tensor
    test: torch.Tensor
    refiner: Refiner | None

    @property
    def classes(self) -> int:
        return len(self.data.label_names)

    @property
    def test_labels(self) -> np.ndarray:
        assert self.data.test is not None
        return self.data.test.labels


def load_few_shot_data(recipe: Recipe, shots: Sequence[int], unlabelled: bool) -> FewShotData:
    """Return the features that a study needs, computed or from the cache.

    Labels are drawn from all of train: no validation images are held out of it.

    unlabelled: whether images without labels refine.
    Raises UserError for data without a test split, with one class, or with fewer images of a class
    than the most shots.
    """
    recipe.validation_fraction = 0.0
    data = load_data(recipe)
    if data.test is None:
        raise UserError(f"{data.source} has no test split; set test_fraction")
    for message in (*data.messages, *check_classes(data.source, [data.train, data.test])):
        log.info("%s", message)
    counts = np.bincount(data.train.labels, minlength=len(data.label_names))
    if max(shots) > counts.min():
        name = data.label_names[int(counts.argmin())]
        raise UserError(
            f"--shots {max(shots)}: there are only {counts.min()} training images of class {name};"
            " name fewer"
        )
    frozen, backbone = load_frozen(recipe, data.label_names)
    pool, test = (
        torch.from_numpy(np.array(frozen.features(split))).to(frozen.device)
        for split in (data.train, data.test)
    )
    refiner = Refiner(pool[_spread(len(pool), MOST_UNLABELLED)]) if unlabelled else None
    return FewShotData(recipe, data, frozen, backbone, pool, test, refiner)


def _spread(count: int, most: int) -> torch.Tensor:
    """Return at most `most` of the places 0 to count - 1, evenly spread."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def few_shot(study: FewShotData, shots: Sequence[int], draws: int) -> dict[str, Any]:
    """Return the accuracy on test of heads that see a few labels of each class.

    `results` has, for each number of shots and method, `mean` over the draws, their 95 % interval
    (`low`, `high`: of the mean, by Student's t; None for one draw) and `accuracies`, one a draw.
    Methods: `means`, `knn`, `logistic`, and `labels`, which is means below LOGISTIC_FROM images a
    class and logistic from there on. With a refiner also `refined`, class means refined on images
    without labels, and `guarded`, which is `refined` where held-out images say that it helps, else
    `labels`.

    Draw d has the images that `train_samples_per_class` draws with a seed that is d higher, so the
    images of fewer shots are among those of more.
    """
    start = time.perf_counter()
    labels = torch.from_numpy(study.data.train.labels).to(study.pool.device)
    truth = torch.from_numpy(study.test_labels).to(study.pool.device)
    directions = normalize(study.test, dim=1)
    results: list[dict[str, Any]] = []
    used: dict[int, int] = {}
    for count in shots:
        accuracies: dict[str, list[float]] = {}
        for draw in range(draws):
            rows = draw_rows(study, count, draw)
            heads = fit_heads(study, rows, labels[rows])
            scores = _accuracies(heads, study.test, truth)
            references = normalize(study.pool[rows], dim=1)
            classes = one_hot(labels[rows], study.classes).float()
            votes = [
                knn_votes(references, classes, queries).argmax(1)
                for queries in directions.split(QUERIES_AT_ONCE)
            ]
            scores["knn"] = float((torch.cat(votes) == truth).double().mean())
            for name, accuracy in scores.items():
                accuracies.setdefault(name, []).append(accuracy)
            if study.refiner and heads["guarded"].method == "refined":
                used[count] = used.get(count, 0) + 1
        results += [
            {"shots": count, "method": name} | over_draws(values)
            for name, values in sorted(accuracies.items())
        ]
    return {
        "results": results,
        "draws": draws,
        "pool_images": len(study.pool),
        "unlabelled_images": len(study.refiner.points[0]) if study.refiner else 0,
        "test_images": len(study.test),
        "refined_in_draws": {str(count): used.get(count, 0) for count in shots},
        "seconds": time.perf_counter() - start,
    }


def _accuracies(
    heads: dict[str, Head], test: torch.Tensor, truth: torch.Tensor
) -> dict[str, float]:
    """Return the accuracy of each head on the test images, which are gone through once."""
    weight = torch.cat([head.linear.weight for head in heads.values()])
    bias = torch.cat([head.linear.bias for head in heads.values()])
    logits = LinearHead(weight, bias).logits(test).unflatten(1, (len(heads), -1))
    shares = (logits.argmax(2) == truth[:, None]).double().mean(0)
    return dict(zip(heads, shares.tolist(), strict=True))


def draw_rows(study: FewShotData, shots: int, draw: int) -> torch.Tensor:
    """Return int64 [shots * C], places in the pool of one draw's labelled images, ascending."""
    train = study.data.train
    seed = (study.recipe.seed + draw) % 2**32
    rows = samples_per_class(train.labels, shots, seed, study.data.label_names)
    return torch.from_numpy(rows).to(study.pool.device)


def fit_heads(study: FewShotData, rows: torch.Tensor, labels: torch.Tensor) -> dict[str, Head]:
    """Return heads for one draw of labelled images, by method; see `few_shot`.

    rows: int64 [n], places in the pool. labels: int64 [n], theirs, all classes equally often.
    """
    features, classes = study.pool[rows], study.classes
    subsets = _leave_out_subsets(labels)
    logistic = fit_in_span(features, labels, classes, study.recipe.seed)
    means = fit_class_means(features, labels, classes)
    parts = [fit_class_means(features[part], labels[part], classes) for part in subsets]
    heads = {
        "means": _with_held_out("means", means, parts, subsets, features, labels),
        "logistic": Head("logistic", *logistic),
    }
    shots = len(labels) // classes
    heads["labels"] = heads["logistic" if shots >= LOGISTIC_FROM else "means"]
    if study.refiner is None:
        return heads
    whole = torch.ones(1, len(labels), dtype=torch.bool, device=labels.device)
    refined = [
        _with_held_out("refined", all_images, held_out, subsets, features, labels)
        for all_images, *held_out in study.refiner.refine(
            features, labels, classes, torch.cat([whole, subsets])
        )
    ]
    heads["refined"] = max(refined, key=lambda head: head.held_out or 0.0)
    heads["guarded"] = _guarded(heads)
    return heads


def _guarded(heads: dict[str, Head]) -> Head:
    """Return `refined` where held-out images say that it helps, by more than one standard error,
    else `labels`. With one image a class nothing can be held out, and `labels` stays.
    """
    labels, refined, means = heads["labels"], heads["refined"], heads["means"]
    if refined.held_out is None or labels.held_out is None:
        return labels
    assert refined.correct is not None and means.correct is not None
    differ = int((refined.correct != means.correct).sum())
    error = np.sqrt(differ) / len(refined.correct)  # of a difference on the same images
    return refined if refined.held_out - labels.held_out > error else labels


def _leave_out_subsets(labels: torch.Tensor) -> torch.Tensor:
    """Return bool [F, n]: the labelled images without a part of each class, so that each image is
    left out once. F is 0 for one image a class.
    """
    classes = labels.unique()
    shots = len(labels) // len(classes)
    folds = min(FOLDS, shots)
    if folds < 2:
        return torch.ones(0, len(labels), dtype=torch.bool, device=labels.device)
    rank = torch.zeros_like(labels)
    for label in classes:
        rank[labels == label] = torch.arange(shots, device=labels.device)
    return torch.stack([rank % folds != fold for fold in range(folds)])


def _with_held_out(
    method: str,
    head: LinearHead,
    parts: list[LinearHead],
    subsets: torch.Tensor,
    features: torch.Tensor,
    labels: torch.Tensor,
) -> Head:
    """Return a head, with what each of `parts` gets right of the images its subset leaves out."""
    if not len(subsets):
        return Head(method, head, None)
    correct = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    for part, subset in zip(parts, subsets, strict=True):
        correct[~subset] = part.logits(features[~subset]).argmax(1) == labels[~subset]
    return Head(method, head, float(correct.double().mean()), correct.cpu().numpy())


def fit_in_span(
    features: torch.Tensor, labels: torch.Tensor, classes: int, seed: int
) -> tuple[LinearHead, float | None]:
    """Return logistic regression with its accuracy on images held out, from fewer images than
    dimensions.

    The best weights lie in the span of the images, so it is solved in coordinates of that span, at
    a fraction of the cost. The features' mean square, the unit of the penalty, grows in them by
    dimensions / coordinates, so the strengths shrink by as much.
    """
    centre = features.mean(0)
    _, sizes, axes = torch.linalg.svd(features - centre, full_matrices=False)
    axes = axes[sizes > 1e-6 * sizes[0]]
    strengths = [strength * len(axes) / features.shape[1] for strength in STRENGTHS]
    fitted = fit_logistic_regression(
        ((features - centre) @ axes.T)[None], labels, classes, seed=seed, strengths=strengths
    )
    weight = fitted.weight @ axes
    held_out = next(
        (score["accuracy"] for score in fitted.scores if score["strength"] == fitted.strength), None
    )
    return LinearHead(weight, fitted.bias - weight @ centre), held_out


def over_draws(accuracies: list[float]) -> dict[str, Any]:
    """Return the mean of accuracies, one a draw, with its 95 % interval by Student's t."""
    from scipy.stats import t

    values = np.array(accuracies)
    mean, low, high = float(values.mean()), None, None
    if len(values) > 1:
        half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
        low, high = mean - half, mean + half
    return {"mean": mean, "low": low, "high": high, "accuracies": accuracies}
