"""Multinomial logistic regression on features, solved to convergence.

The problem is convex, so nothing here depends on learning rates, epochs or batch sizes. Its
solution depends neither on the features' offset nor on their scale, because they are centred and
divided by one number. Dividing each dimension by its own deviation would blow up the noise of
dimensions that hardly vary: over twenty small image sets it lost 3.3 points on average.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from hf_cifar.training.precision import exact_products

# Penalties that are tried, from strong to weak, for features of mean square 1 and the mean loss.
STRENGTHS = tuple(10.0 ** (power / 2) for power in range(2, -13, -1))
FOLDS = 5
ONE_FOLD_FROM = 5_000  # images; from here on one held-out fold tells the strengths apart
PATIENCE = 2  # stop trying weaker penalties after so many that were worse than the best one
MAX_ITERATIONS = 500  # of L-BFGS for one strength; warm-started fits take 10 to 60
# Largest entry of the gradient at a solution: of the final fit, and of one that is only compared.
TOLERANCE, FOLD_TOLERANCE = 1e-6, 1e-4


@dataclass(frozen=True)
class LogisticRegression:
    """A fitted classifier: logits = features @ weight.T + bias.

    weight: float32 [C, D]. bias: float32 [C]. strength: of the penalty that was chosen. scores:
    {"strength", "nll", "accuracy"} on held-out images, for each strength that was tried.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    strength: float
    scores: list[dict[str, float]]

    @exact_products()
    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return float32 [n, C] for features [n, D]."""
        return torch.addmm(self.bias, features.float(), self.weight.T)


@exact_products()
def fit_logistic_regression(
    features: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    *,
    seed: int,
    strengths: Sequence[float] = STRENGTHS,
    class_weights: torch.Tensor | None = None,
) -> LogisticRegression:
    """Fit a classifier on features, with the strength of its penalty chosen by cross-validation.

    A strength is scored on images that its fit has not seen: five stratified folds in turn, or one
    of them where there are many images. The strength with the least negative log-likelihood is then
    fitted to all images.

    features: float [views, n, D] on the device to compute on; all views of an image are in the same
    fold. labels: int64 [n] there. seed: of the folds. strengths: from strong to weak.
    class_weights: float32 [C] there, of each class in the losses and in the likelihood that chooses
    the strength; None: every image counts alike.
    """
    scores = _cross_validate(features, labels, classes, seed, strengths, class_weights)
    best = strengths[len(strengths) // 2]  # where nothing can be held out
    if scores:
        best = min(scores, key=lambda score: score["nll"])["strength"]
    path = _WarmStartedFit(features, labels, classes, TOLERANCE, class_weights)
    for strength in strengths[: list(strengths).index(best) + 1]:
        path.fit(strength)
    weight, bias = path.classifier()
    return LogisticRegression(weight, bias, best, scores)


def _stratified_folds(
    labels: np.ndarray, folds: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows to fit and the rows to hold out, [(train, test), ...], of each fold."""
    from sklearn.model_selection import StratifiedKFold  # takes a second, which most runs save

    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(labels)), labels))


def _cross_validate(
    features: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    seed: int,
    strengths: Sequence[float],
    class_weights: torch.Tensor | None,
) -> list[dict[str, float]]:
    """Return {"strength", "nll", "accuracy"} on held-out images for the strengths up to the best
    one and PATIENCE further; none where a class has a single image.
    """
    host_labels = labels.cpu().numpy()
    folds = min(FOLDS, int(np.bincount(host_labels, minlength=classes).min()))
    if folds < 2:  # a class with one image can't be both fitted and held out
        return []
    splits = _stratified_folds(host_labels, folds, seed)
    if len(host_labels) >= ONE_FOLD_FROM:
        splits = splits[:1]
    pairs = [
        (torch.from_numpy(train).to(labels.device), torch.from_numpy(test).to(labels.device))
        for train, test in splits
    ]
    fits = [
        _WarmStartedFit(features[:, train], labels[train], classes, FOLD_TOLERANCE, class_weights)
        for train, _ in pairs
    ]
    held_out = sum(len(test) for _, test in pairs)
    weight_held_out: float = held_out
    if class_weights is not None:
        weight_held_out = sum(float(class_weights[labels[test]].sum()) for _, test in pairs)
    scores: list[dict[str, float]] = []
    for strength in strengths:
        loss, correct = 0.0, 0
        for fit, (_, test) in zip(fits, pairs, strict=True):
            fit.fit(strength)
            weight, bias = fit.classifier()
            logits = torch.addmm(bias, features[0, test].float(), weight.T)
            loss += float(
                F.cross_entropy(logits, labels[test], weight=class_weights, reduction="sum")
            )
            correct += int((logits.argmax(1) == labels[test]).sum())
        scores.append(
            {"strength": strength, "nll": loss / weight_held_out, "accuracy": correct / held_out}
        )
        losses = [score["nll"] for score in scores]
        if len(losses) - 1 - losses.index(min(losses)) >= PATIENCE:
            break
    return scores


class _WarmStartedFit:
    """Fits of falling strength on the same images; each starts from the solution before it.

    features: float [views, n, D]. labels: int64 [n]. tolerance: see TOLERANCE. class_weights: see
    `fit_logistic_regression`.
    """

    def __init__(
        self,
        features: torch.Tensor,
        labels: torch.Tensor,
        classes: int,
        tolerance: float,
        class_weights: torch.Tensor | None = None,
    ) -> None:
        self.class_weights = class_weights
        self.labels, self.tolerance = labels.repeat(len(features)), tolerance
        features = features.flatten(0, 1)
        self.mean = features.mean(0, dtype=torch.float64).float()
        centred = features.float() - self.mean
        tiny = torch.finfo(torch.float32).tiny
        self.scale = centred.square().mean().sqrt().clamp(min=tiny)
        self.inputs = centred.div_(self.scale)
        self.weight = torch.zeros(classes, self.inputs.shape[1], device=self.inputs.device)
        self.bias = torch.zeros(classes, device=self.inputs.device)

    @torch.inference_mode(False)
    @torch.enable_grad()
    def fit(self, strength: float) -> None:
        """Minimise the mean cross-entropy plus strength / 2 times the sum of squared weights."""
        weight = self.weight.clone().requires_grad_()
        bias = self.bias.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=MAX_ITERATIONS,
            tolerance_grad=self.tolerance,
            tolerance_change=1e-12,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            logits = torch.addmm(bias, self.inputs, weight.T)
            loss = F.cross_entropy(logits, self.labels, weight=self.class_weights)
            loss = loss + strength / 2 * weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
        self.weight, self.bias = weight.detach(), bias.detach()

    def classifier(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (weight [C, D], bias [C]) for features as they were given."""
        weight = self.weight / self.scale
        return weight, self.bias - weight @ self.mean


@exact_products()
def out_of_fold_probabilities(
    features: torch.Tensor, labels: torch.Tensor, classes: int, *, seed: int
) -> torch.Tensor:
    """Return float32 [n, C]: for each image, the answer of a classifier that has not seen it.

    Five stratified folds are left out in turn (fewer where a class has fewer images). The strength
    of the penalty is the one with the least negative log-likelihood on the first fold.

    features: float [n, D] on the device to compute on. labels: int64 [n] there, at least two of
    each class.
    """
    host_labels = labels.cpu().numpy()
    folds = min(FOLDS, int(np.bincount(host_labels, minlength=classes).min()))
    probabilities = torch.empty(len(labels), classes, device=features.device)
    strengths: list[float] = []
    for train, test in _stratified_folds(host_labels, folds, seed):
        held_out = torch.from_numpy(test).to(labels.device)
        rest = torch.from_numpy(train).to(labels.device)
        path = _WarmStartedFit(features[None, rest], labels[rest], classes, FOLD_TOLERANCE)

        def logits(path: _WarmStartedFit, rows: torch.Tensor = held_out) -> torch.Tensor:
            weight, bias = path.classifier()
            return torch.addmm(bias, features[rows].float(), weight.T)

        if strengths:
            for strength in strengths:
                path.fit(strength)
            answer = logits(path)
        else:
            answer, strengths = _best_on_path(path, logits, labels[held_out])
        probabilities[held_out] = answer.softmax(1)
    return probabilities


def _best_on_path(
    path: _WarmStartedFit, logits: Callable[[_WarmStartedFit], torch.Tensor], labels: torch.Tensor
) -> tuple[torch.Tensor, list[float]]:
    """Return the logits with the least negative log-likelihood for `labels` along falling
    strengths, and the strengths up to it.
    """
    best, losses, answer = 0, list[float](), torch.empty(0)
    for place, strength in enumerate(STRENGTHS):
        path.fit(strength)
        values = logits(path)
        losses.append(float(F.cross_entropy(values, labels)))
        if losses[-1] == min(losses):
            best, answer = place, values
        if place - best >= PATIENCE:
            break
    return answer, list(STRENGTHS[: best + 1])
