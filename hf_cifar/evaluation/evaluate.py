"""`hf-cifar evaluate`: score a model on a split."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from hf_cifar.data.label_sets import split_sets
from hf_cifar.data.load import check_classes, load_split
from hf_cifar.errors import UserError
from hf_cifar.evaluation.classifier import Classifier, load_classifier, probabilities
from hf_cifar.evaluation.label_names import map_labels
from hf_cifar.evaluation.metrics import classification_metrics
from hf_cifar.evaluation.multi_label_metrics import multi_label_metrics
from hf_cifar.evaluation.operating_point import (
    find_positive,
    operating_point_metrics,
    read_operating_point,
)
from hf_cifar.evaluation.ranking_metrics import average_precision
from hf_cifar.recipe.load import load_recipe
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.training.precision import fastest_precision

# A file of a run folder that is never pushed. Its key "dataset_path" holds the absolute path of the
# run's data, where that was a folder or a file.
PRIVATE_FACTS = ".hf_cifar.json"


def evaluate(
    model: str, dataset: str | None, split: str, batch_size: int, precision: str, tta: str
) -> dict[str, Any]:
    """Return `classification_metrics` of a model on a split, or `multi_label_metrics`, and images a
    second.

    The model's labels are matched with the data's by name, whatever their order.

    precision: auto, fp32 or bf16. tta: none or flip, which averages each image with its mirror.
    Raises UserError for a model, data or labels that can't be used.
    """
    classifier = load_classifier(model, several_labels=True)
    recipe = data_recipe(model, dataset)
    if classifier.several_labels:
        recipe.objective = "multi_label"  # the cuts of other data depend on it
    images = load_split(recipe, split, classifier.pixel_range)
    label_names = list(images.images.label_names)
    if classifier.several_labels:
        label_names, members = split_sets(label_names)
    else:
        check_classes(recipe.dataset_name, [images])
    columns = np.argsort(map_labels(classifier.labels, label_names))
    if len(columns) < len(label_names):
        raise UserError(
            f"{model} knows {len(columns)} of the data's {len(label_names)} classes; choose other"
            " data with --dataset"
        )
    (bf16, channels_last), _ = fastest_precision(
        classifier.model,
        classifier.transforms.image_size,
        classifier.device,
        bf16=None if precision == "auto" else precision == "bf16",
    )
    start = time.perf_counter()
    outputs = probabilities(
        classifier,
        images,
        batch_size=batch_size,
        bf16=bf16,
        channels_last=channels_last,
        flip=tta == "flip",
    )
    seconds = time.perf_counter() - start
    answers = outputs[:, columns]
    if classifier.several_labels:
        targets = members[images.labels]
        metrics = multi_label_metrics(answers, targets, label_names, prefix=split)
    else:
        metrics = classification_metrics(answers, images.labels, label_names, prefix=split)
    metrics |= _positive_class_metrics(
        classifier, label_names, outputs[:, columns], images.labels, split
    )
    return metrics | {
        "samples_per_second": len(images) / seconds,
        "precision": "bf16" if bf16 else "fp32",
        "tta": tta,
    }


def _positive_class_metrics(
    classifier: Classifier,
    label_names: list[str],
    answers: np.ndarray,
    labels: np.ndarray,
    split: str,
) -> dict[str, Any]:
    """Return what a run's positive class changes: the average precision, and sensitivity and
    specificity at the threshold that the run has chosen. Nothing for a model without such a class.

    label_names: the data's, as in the columns of `answers`, float64 [n, C]. labels: int64 [n].
    """
    config, names = classifier.model.config, classifier.labels
    point = read_operating_point(config, names, f"{classifier.files.name}: config.json")
    name = point.positive_class if point else getattr(config, "positive_class", None)
    if name is None or len(label_names) != 2:
        return {}
    positive = map_labels(names, label_names)[find_positive(names, name)]
    metrics = {
        f"{split}_{key}": value
        for key, value in average_precision(answers, labels, positive).items()
    }
    if point is not None:
        metrics |= operating_point_metrics(answers, labels, positive, point.threshold, split)
        metrics["operating_point"] = point.to_config()
    return metrics


def data_recipe(model: str, dataset: str | None) -> Recipe:
    """Return the recipe whose data keys say what to evaluate on: `dataset` with the defaults, or a
    run's own, so that its splits are the same.
    """
    if dataset is not None:
        return Recipe(dataset_name=dataset)
    folder = Path(model).expanduser()
    if not (folder / "recipe.yaml").is_file():
        return Recipe()
    recipe = load_recipe(str(folder / "recipe.yaml"))
    if recipe.objective == "multi_task":
        raise UserError(
            f"{model}: is a run of several tasks, or its task of turned pictures; name tasks/NAME"
            " of another task in the run's folder, or look into metrics.json for the scores"
        )
    recipe.dataset_name = _find_dataset(folder, recipe.dataset_name)
    return recipe


def _find_dataset(run: Path, name: str) -> str:
    """Return where a run's data lies: at the path that the run noted, else beside the run or one
    folder higher, else where its recipe says.
    """
    try:
        facts = json.loads((run / PRIVATE_FACTS).read_text(encoding="utf-8"))
        noted = Path(facts["dataset_path"])
    except (OSError, ValueError, KeyError, TypeError):  # the data was no folder or file
        return name
    folders = run.resolve().parents[:2]
    candidates = [noted, *(folder / noted.name for folder in folders)]
    return next((str(path) for path in candidates if path.exists()), name)
