"""The choice of an 8-bit graph: the quickest one whose accuracy holds."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_cifar.data.splits import Split
from hf_cifar.evaluation.classifier import Classifier
from hf_cifar.export.measure import TORCH, all_logits, closeness, pixel_batches, speeds
from hf_cifar.export.quantize import (
    DYNAMIC,
    STATIC,
    STATIC_WITHOUT_OUTLIERS,
    Recipe8Bit,
    quantize,
)

log = logging.getLogger(__name__)
FIRST_CHOICES, LATER_CHOICES = (STATIC, DYNAMIC), (STATIC_WITHOUT_OUTLIERS,)


@dataclass(frozen=True)
class Candidate:
    """An 8-bit graph. loss: accuracy that it loses on the images of the choice. speed: images/s at
    batch 1 on one thread.
    """

    recipe: Recipe8Bit
    path: Path
    loss: float
    speed: float


def choose_8_bit(
    graph: Path,
    classifier: Classifier,
    calibration: Split,
    judges: tuple[Split, np.ndarray],
    max_loss: float,
) -> tuple[Candidate, list[Candidate]]:
    """Return the quickest 8-bit graph that loses `max_loss` at most, and all that were tried; where
    none holds, the one that loses least. All lie beside the float32 `graph`.

    The range without outliers takes long to find, so it is tried only where the quicker of the
    first two does not hold.

    calibration: images of train, as they are. judges: other images than test's, and their labels.
    """
    pictures = list(pixel_batches(classifier, calibration, 1))
    candidates: list[Candidate] = []
    for recipes in (FIRST_CHOICES, LATER_CHOICES):
        paths = {}
        for recipe in recipes:
            paths[str(recipe)] = graph.with_name(f"{recipe.kind}_{recipe.calibration}.onnx")
            quantize(graph, recipe, pictures, paths[str(recipe)])
        facts = closeness(all_logits(classifier, judges[0], paths), judges[1])
        rates = speeds(classifier.model, paths, classifier.transforms.image_size)
        for recipe in recipes:
            name = str(recipe)
            loss = facts[TORCH]["accuracy"] - facts[name]["accuracy"]
            candidates.append(Candidate(recipe, paths[name], loss, rates[name]["1"]))
            log.info(
                "8 bits, %s: %.2f points lost on %d images of %s, %.1f images/s",
                name,
                100 * loss,
                len(judges[0]),
                judges[0].name,
                rates[name]["1"],
            )
        quickest = max(candidates, key=lambda candidate: candidate.speed)
        if quickest.loss <= max_loss:
            return quickest, candidates
    holding = [candidate for candidate in candidates if candidate.loss <= max_loss]
    if holding:
        return max(holding, key=lambda candidate: candidate.speed), candidates
    return min(candidates, key=lambda candidate: candidate.loss), candidates
