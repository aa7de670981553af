"""A finished model adapted to the unlabelled images of another place, or kept as it was."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_cifar.adaptation.answers import (
    Answers,
    answer,
    batches,
    effective_classes,
    information_by_batch,
    shuffled,
)
from hf_cifar.adaptation.base import Adaptation, Settings
from hf_cifar.adaptation.batch_norm import BatchNormStatistics
from hf_cifar.adaptation.guard import (
    COLLAPSE,
    SIGNIFICANCE,
    information_threshold,
    shift_p_value,
)
from hf_cifar.adaptation.table import ADAPTATIONS
from hf_cifar.data.splits import Split
from hf_cifar.errors import UserError
from hf_cifar.evaluation.classifier import Classifier

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Images, and their labels among the model's classes, int64 [n], where they are known."""

    split: Split
    labels: np.ndarray | None


@dataclass(frozen=True)
class Reference:
    """What the guard knows of the source: the model's answers to its images, and the threshold of
    `information_threshold`.
    """

    answers: Answers
    threshold: float | None


def measure_source(classifier: Classifier, source: Place, size: int) -> Reference:
    """Return what `adapt` compares with. size: images in a batch."""
    assert source.labels is not None
    threshold = information_threshold(classifier, source.split, source.labels, size)
    return Reference(answer(classifier, source.split, size), threshold)


@dataclass
class Outcome:
    """What an adaptation did.

    kept: whether the model stayed as it was. reason: why, or what was done. source_before ... :
    accuracies as fractions; None where they were not measured or there are no labels.
    p_value: of the test that finds no shift. source: the answers to the source's images at the end.
    """

    kept: bool
    reason: str
    source_before: float | None
    source_after: float | None
    target_before: float | None
    target_after: float | None
    p_value: float
    source: Answers

    def facts(self) -> dict[str, Any]:
        """Return the outcome as JSON types."""
        facts = {name: value for name, value in vars(self).items() if name != "source"}
        return facts


def adapt(
    classifier: Classifier,
    source: Place,
    target: Place,
    name: str,
    settings: Settings,
    *,
    size: int,
    seed: int = 0,
    max_source_loss: float | None = None,
    reference: Reference | None = None,
) -> Outcome:
    """Adapt the model in place to the target, unless the guard says that it should stay.

    name: a key of `ADAPTATIONS`. size: images in a batch. max_source_loss: most accuracy, a
    fraction, that the source may lose. reference: of the same model, measured before.
    Raises UserError for a model without norms, and for a target of fewer images than a batch.
    """
    check_batch(target, size)
    adaptation = ADAPTATIONS[name](classifier.model, settings)
    assert source.labels is not None
    reference = reference or measure_source(classifier, source, size)
    before, threshold = reference.answers, reference.threshold
    target_before = answer(classifier, target.split, size)
    p_value = shift_p_value(before.features, target_before.features)
    outcome = Outcome(
        kept=True,
        reason="",
        source_before=accuracy(before, source.labels),
        source_after=None,
        target_before=accuracy(target_before, target.labels),
        target_after=None,
        p_value=p_value,
        source=before,
    )
    if p_value > SIGNIFICANCE:
        outcome.reason = f"no shift was found to adapt to (p = {p_value:.2g})"
        return outcome
    order = shuffled(target.split, size, seed, epoch=0)
    known = information_by_batch(classifier, target.split, size, order)
    if threshold is not None and known is not None and known < threshold:
        outcome.reason = (
            "the target's batches look like batches of few classes: by their own statistics, the"
            f" answers tell {known:.2f} nats about the images, and mixed classes {threshold:.2f} or"
            " more"
        )
        return outcome
    _learn(adaptation, classifier, source, target, size, seed)
    after, target_after = (answer(classifier, p.split, size) for p in (source, target))
    outcome.source_after = accuracy(after, source.labels)
    outcome.target_after = accuracy(target_after, target.labels)
    outcome.reason = _collapse(target_before, target_after) or too_costly(outcome, max_source_loss)
    if outcome.reason:
        adaptation.reset()
        return outcome
    outcome.kept, outcome.source = False, after
    outcome.reason = f"adapted {adaptation.description}"
    return outcome


def check_batch(target: Place, size: int) -> None:
    """Raise UserError for a target of fewer images than a batch."""
    if len(target.split) < size:
        raise UserError(
            f"the target has {len(target.split)} images, fewer than a batch of {size}; lower"
            " --batch_size or name more images"
        )


def _learn(
    adaptation: Adaptation,
    classifier: Classifier,
    source: Place,
    target: Place,
    size: int,
    seed: int,
) -> None:
    def mixed(place: Place, epoch: int) -> Iterable[torch.Tensor]:
        rows = shuffled(place.split, size, seed, epoch)
        return batches(classifier, place.split, size, rows)

    if adaptation.needs_source:
        adaptation.prepare(lambda: mixed(source, 0))
    if not isinstance(adaptation, BatchNormStatistics):
        for epoch in range(adaptation.settings.epochs):
            for pixels in mixed(target, epoch):
                adaptation.step(pixels)
    adaptation.finish(lambda: mixed(target, 0))


def accuracy(answers: Answers, labels: np.ndarray | None) -> float | None:
    """Return the share of right answers; None without labels."""
    if labels is None:
        return None
    return float((answers.probabilities.argmax(1) == labels).mean())


def _collapse(before: Answers, after: Answers) -> str:
    """Return why the answers are of no use any more, or nothing."""
    if not after.finite:
        return "the answers are not finite after the adaptation"
    classes, left = (effective_classes(a.probabilities) for a in (before, after))
    if left < COLLAPSE * classes:
        return f"the predictions collapsed: to {left:.1f} classes in effect, from {classes:.1f}"
    return ""


def too_costly(outcome: Outcome, most: float | None) -> str:
    """Return why the adaptation costs too much on the source, or nothing.

    most: the accuracy that the source may lose, a fraction; None for any.
    """
    if most is None or outcome.source_before is None or outcome.source_after is None:
        return ""
    loss = outcome.source_before - outcome.source_after
    if loss <= most:
        return ""
    return (
        f"it would cost {100 * loss:.1f} points on the source, and --max-source-loss is"
        f" {100 * most:.1f}"
    )
