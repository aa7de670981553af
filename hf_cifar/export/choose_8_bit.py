"""The choice of an 8-bit graph: the quickest one whose accuracy holds."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_cifar.data.splits import Split
from hf_cifar.evaluation.classifier import Classifier
from hf_cifar.export.measure import TORCH, all_logits, closeness, pixel_batches, speeds
from hf_cifar.export.quantize import ROUNDS, Recipe8Bit, quantize

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """An 8-bit graph. speed: images/s at batch 1 on one thread. loss: accuracy that it loses on the
    images of the choice; None where a quicker one held, so that it was not asked. error: standard
    error of the loss, by the number of images that only the graph or only the model gets right.
    difference: the mean absolute difference of its logits, where that is what was asked.
    """

    recipe: Recipe8Bit
    path: Path
    speed: float
    loss: float | None = None
    error: float = 0.0
    difference: float | None = None

    def holds(self, max_loss: float) -> bool:
        """Return whether it loses `max_loss` at most, with the loss a standard error larger; a gain
        is chance and counts as no loss.

        A graph of EfficientNet-Lite0 gained 0.2 points on 1,000 images, lost 0.2 on the first 500
        of them, and 0.8 on 2,000 others.
        """
        return self.loss is not None and max(self.loss, 0.0) + self.error <= max_loss


def choose_closest(
    graph: Path, classifier: Classifier, calibration: Split, judges: Split
) -> tuple[Candidate, list[Candidate]]:
    """Return the 8-bit graph whose logits are closest to the model's, and all that were made.

    This is the choice where only training images are at hand: the model answers them too surely for
    their accuracy to say anything. EfficientNet-Lite0 lost nothing on them, and 1.4 points on test.
    calibration, judges: images of train, as they are.
    """
    pictures = list(pixel_batches(classifier, calibration, 1))
    recipes = [recipe for recipes in ROUNDS for recipe in recipes]
    paths = _make(graph, recipes, pictures)
    rates = speeds(classifier.model, paths, classifier.transforms.image_size, batches=(1,))
    logits = all_logits(classifier, judges, paths)
    tried = [
        Candidate(
            recipe,
            paths[str(recipe)],
            rates[str(recipe)]["1"],
            difference=float(np.abs(logits[str(recipe)] - logits[TORCH]).mean()),
        )
        for recipe in recipes
    ]
    for one in tried:
        log.info(
            "8 bits, %s: logits differ by %.3f on average, %.1f images/s",
            one.recipe,
            one.difference,
            one.speed,
        )
    return min(tried, key=lambda one: one.difference or 0.0), tried


def _make(
    graph: Path, recipes: Sequence[Recipe8Bit], pictures: Sequence[np.ndarray]
) -> dict[str, Path]:
    """Write an 8-bit graph by each recipe and return the files by the recipes' names."""
    paths = {str(recipe): graph.with_name(f"{recipe}.onnx") for recipe in recipes}
    for recipe in recipes:
        quantize(graph, recipe, pictures, paths[str(recipe)])
    return paths


def choose_8_bit(
    graph: Path,
    classifier: Classifier,
    calibration: Split,
    judges: tuple[Split, np.ndarray],
    max_loss: float,
) -> tuple[Candidate, list[Candidate]]:
    """Return the quickest 8-bit graph that loses `max_loss` at most (see `Candidate.holds`), and
    all that were made; where none holds, the one with the smallest error, whose answers are
    closest to the model's. All lie beside the float32 `graph`.

    calibration: images of train, as they are. judges: validation images, and their labels.
    """
    split, labels = judges
    pictures = list(pixel_batches(classifier, calibration, 1))
    reference = all_logits(classifier, split, {})
    tried: list[Candidate] = []
    for recipes in ROUNDS:
        paths = _make(graph, recipes, pictures)
        rates = speeds(classifier.model, paths, classifier.transforms.image_size, batches=(1,))
        candidates = [Candidate(one, paths[str(one)], rates[str(one)]["1"]) for one in recipes]
        holding = [one for one in tried if one.holds(max_loss)]
        for candidate in sorted(candidates, key=lambda one: -one.speed):
            if any(one.speed > candidate.speed for one in holding):
                tried.append(candidate)
                continue
            name = str(candidate.recipe)
            answers = all_logits(classifier, split, {name: candidate.path}, with_torch=False)
            pair = closeness(reference | answers, labels)[name]["paired"]
            differing = pair["only_first_right"] + pair["only_second_right"]
            loss, error = pair["difference"], math.sqrt(differing) / len(labels)
            candidate = dataclasses.replace(candidate, loss=loss, error=error)
            log.info(
                "8 bits, %s: %.2f +- %.2f points lost on %d images of %s, %.1f images/s",
                name,
                100 * loss,
                100 * error,
                len(split),
                split.name,
                candidate.speed,
            )
            tried.append(candidate)
            if candidate.holds(max_loss):
                holding.append(candidate)
        if holding:
            return max(holding, key=lambda one: one.speed), tried
    asked = [one for one in tried if one.loss is not None]
    return min(asked, key=lambda one: one.error), tried
