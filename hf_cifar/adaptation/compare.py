"""`hf-cifar data check --against`: in what the pictures of two places differ."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import ks_2samp
from torchvision.transforms.v2 import functional as tv

from hf_cifar.adaptation.answers import answer
from hf_cifar.adaptation.guard import shift_p_value
from hf_cifar.data.load import load_split
from hf_cifar.data.sources.find import find_source
from hf_cifar.data.splits import Split
from hf_cifar.errors import UserError
from hf_cifar.evaluation.classifier import load_classifier
from hf_cifar.features.extract import CPU_BATCH
from hf_cifar.recipe.recipe import Recipe

LOOKS = ("red", "green", "blue", "brightness", "contrast", "saturation", "sharpness")
MOST_IMAGES = 2000
CHUNK = 256
COMPARED_SIDE = 64  # px: larger pictures are shrunk, so that sharpness means the same for both
SHOWN = 6  # pictures of each side


@dataclass(frozen=True)
class Side:
    """Some pictures of one place. looks: float64 [n, 7], in the order of `LOOKS`."""

    name: str
    split: Split
    looks: np.ndarray


def compare_places(first: str, second: str, model: str | None) -> tuple[dict[str, Any], list[Side]]:
    """Return how the pictures of two data sets differ, as JSON types, and the two sides.

    looks: for each of `LOOKS` both means, the difference in deviations of the first side, and the
    p-value of a Kolmogorov-Smirnov test. labels: the share of each class on both sides.
    features: with a model, the distance of the mean features in deviations of the first side's, and
    the p-value of "the features are the same". images: of each side.

    The pictures are the first 2,000 of the test split, or of train where there is none. Raises
    UserError for data that can't be read.
    """
    sides = [_side(name) for name in (first, second)]
    result: dict[str, Any] = {
        "images": [len(side.split) for side in sides],
        "looks": {},
        "labels": {},
        "features": None,
    }
    for column, name in enumerate(LOOKS):
        ours, theirs = (side.looks[:, column] for side in sides)
        deviation = float(ours.std()) or 1.0
        result["looks"][name] = {
            "means": [float(ours.mean()), float(theirs.mean())],
            "difference": float(theirs.mean() - ours.mean()) / deviation,
            "p_value": float(ks_2samp(ours, theirs, method="asymp").pvalue),
        }
    for number, side in enumerate(sides):
        for label, name in enumerate(side.split.images.label_names):
            shares = result["labels"].setdefault(name, [0.0, 0.0])
            shares[number] = float((side.split.labels == label).mean())
    if model is not None:
        classifier = load_classifier(model)
        ours, theirs = (answer(classifier, side.split, CPU_BATCH).features for side in sides)
        spread = np.sqrt(ours.var(0).sum())
        result["features"] = {
            "distance": float(np.linalg.norm(theirs.mean(0) - ours.mean(0)) / max(spread, 1e-12)),
            "p_value": shift_p_value(ours, theirs),
        }
    return result, sides


def looks(images: torch.Tensor) -> np.ndarray:
    """Return float64 [n, 7], in the order of `LOOKS`, of uint8 [n, 3, H, W].

    The means of the colours and of the brightness (ITU-R 601) and the contrast (the deviation of
    the brightness) are grey levels; the saturation is a fraction; the sharpness is the deviation of
    the brightness's Laplacian, in grey levels.
    """
    pixels = images.double()
    red, green, blue = pixels.unbind(1)
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    most, least = pixels.amax(1), pixels.amin(1)
    saturation = torch.where(most > 0, (most - least) / most.clamp(min=1), 0.0)
    edges = (
        grey[:, :-2, 1:-1]
        + grey[:, 2:, 1:-1]
        + grey[:, 1:-1, :-2]
        + grey[:, 1:-1, 2:]
        - 4 * grey[:, 1:-1, 1:-1]
    )
    columns = [pixels.mean((2, 3)).T, grey.mean((1, 2))[None], grey.flatten(1).std(1)[None]]
    columns += [saturation.mean((1, 2))[None], edges.flatten(1).std(1)[None]]
    return torch.cat(columns).T.numpy()


def typical(sides: list[Side]) -> list[list[np.ndarray]]:
    """Return some pictures of each side, uint8 [H, W, 3], whose looks are nearest its median."""
    scale = np.maximum(sides[0].looks.std(0), 1e-9)
    chosen = []
    for side in sides:
        distance = np.abs((side.looks - np.median(side.looks, 0)) / scale).sum(1)
        rows = side.split.rows[np.argsort(distance, kind="stable")[:SHOWN]]
        chosen.append([side.split.images.picture(int(row)) for row in rows])
    return chosen


def _side(name: str) -> Side:
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().exists():
        raise UserError(f"{name}: there is no such folder; correct the path")
    brought = find_source(name).splits
    recipe = Recipe(dataset_name=name, max_eval_samples=MOST_IMAGES, validation_fraction=0.0)
    recipe.max_train_samples = MOST_IMAGES
    split = load_split(recipe, "test" if "test" in brought else "train")
    parts = []
    for first in range(0, len(split), CHUNK):
        images = split.images.batch(split.rows[first : first + CHUNK])
        each = images if isinstance(images, list) else [images]
        for batch in each:
            batch = batch if batch.ndim == 4 else batch[None]
            if min(batch.shape[-2:]) > COMPARED_SIDE:
                batch = tv.resize(batch, [COMPARED_SIDE], antialias=True)
            if min(batch.shape[-2:]) < 3:
                raise UserError(f"{name}: pictures of less than 3 px can't be compared")
            parts.append(looks(batch))
    return Side(name, split, np.concatenate(parts))
