"""`hf-cifar evaluate`: score a model on a split."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from hf_cifar.data.load import load_split
from hf_cifar.evaluation.classifier import load_classifier, probabilities
from hf_cifar.evaluation.label_names import map_labels
from hf_cifar.evaluation.metrics import classification_metrics
from hf_cifar.recipe.load import load_recipe
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.training.precision import fastest


def data_recipe(model: str, dataset: str | None) -> Recipe:
    """The data keys to evaluate with: a run's own, so that its splits are the same, else the
    defaults.
    """
    path = Path(model) / "recipe.yaml"
    recipe = load_recipe(str(path)) if path.is_file() and dataset is None else Recipe()
    if dataset is not None:
        recipe.dataset_name = dataset
    return recipe


def evaluate(
    model: str, dataset: str | None, split: str, batch_size: int, precision: str, tta: str
) -> dict[str, Any]:
    """`metrics.classification_metrics` of a model on a split, and images a second. Raises
    UserError.

    The model's labels are matched with the dataset's by name, so their order does not matter.
    """
    classifier = load_classifier(model)
    images = load_split(data_recipe(model, dataset), split)
    names = list(images.images.label_names)
    columns = np.argsort(map_labels(classifier.labels, names, None))
    told = None if precision == "auto" else precision == "bf16"
    frozen = classifier.model.requires_grad_(False)
    bf16, channels_last, _ = fastest(
        frozen, classifier.transforms.image_size, classifier.device, told, None
    )
    began = time.perf_counter()
    way = {"bf16": bf16, "channels_last": channels_last, "flip": tta == "flip"}
    found = probabilities(classifier, images, batch_size=batch_size, **way)
    seconds = time.perf_counter() - began
    metrics = classification_metrics(found[:, columns], images.labels, names, prefix=split)
    return metrics | {
        "samples_per_second": len(images) / seconds,
        "precision": "bf16" if bf16 else "fp32",
        "tta": tta,
    }
