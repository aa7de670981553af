"""The data that a finished model meets: a run's own, or any other, with labels matched by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from hf_cifar.data.label_sets import split_sets
from hf_cifar.data.load import load_split
from hf_cifar.data.splits import Split
from hf_cifar.errors import UserError
from hf_cifar.evaluation.classifier import Classifier
from hf_cifar.evaluation.evaluate import data_recipe
from hf_cifar.evaluation.label_names import list_labels, map_labels
from hf_cifar.recipe.fields import DataKeys
from hf_cifar.recipe.load import make_recipe
from hf_cifar.recipe.recipe import Recipe


def target_recipe(model: str, dataset: str | None, keys: dict[str, Any]) -> Recipe:
    """Return the recipe whose data keys say which images are meant: `dataset`, or the run's own.

    keys: data keys that are set on top; `dataset_name` stands for `dataset` too. Raises UserError
    for other keys and values.
    """
    allowed = {field.name for field in dataclasses.fields(DataKeys)}
    if unknown := sorted(set(keys) - allowed):
        raise UserError(
            f"command line: --{unknown[0]}: only keys of the data can be set here:"
            f" {', '.join(sorted(allowed))}"
        )
    recipe = data_recipe(model, dataset or keys.get("dataset_name"))
    data = {name: getattr(recipe, name) for name in allowed} | {"seed": recipe.seed}
    return make_recipe("data", data, {k: v for k, v in keys.items() if k != "dataset_name"})


def load_target(
    classifier: Classifier, recipe: Recipe, split: str, labels: dict[str, str] | None = None
) -> tuple[Split, np.ndarray]:
    """Return a split, and the label of each of its images among the model's classes, int64 [n]; or
    which of the model's labels each has, bool [n, C], for a model that gives several.

    labels: what labels of the model mean, where their names don't say it. Raises UserError for
    data that can't be used, and for classes of the data that the model does not know.
    """
    if classifier.several_labels:
        recipe = dataclasses.replace(recipe, objective="multi_label")
    images = load_split(recipe, split, classifier.pixel_range)
    if classifier.several_labels:
        names, members = split_sets(images.images.label_names)
        columns = map_labels(classifier.labels, names, labels)
        return images, members[images.labels][:, columns]
    return images, labels_of_model(classifier.labels, images, labels)


def labels_of_model(
    model_labels: list[str], split: Split, given: dict[str, str] | None = None
) -> np.ndarray:
    """Return the label of each image among the model's classes, int64 [n]. Raises UserError."""
    names = list(split.images.label_names)
    try:  # names such as LABEL_3 can be read where the model has as many classes as the data
        meanings = map_labels(model_labels, names, given)
        numbers = np.full(len(names), -1)
        numbers[meanings] = np.arange(len(model_labels))
    except UserError:
        numbers = _data_among_model(model_labels, names, given or {})
    if (numbers[split.labels] < 0).any():
        numbers = _data_among_model(model_labels, names, given or {})
    return numbers[split.labels]


def _data_among_model(
    model_labels: list[str], names: list[str], given: dict[str, str]
) -> np.ndarray:
    """Return the model's class of each of the data's, which may lack some of the model's."""
    swapped = {ours: theirs for theirs, ours in given.items()}
    try:
        return np.array(map_labels(names, model_labels, swapped))
    except UserError:
        raise UserError(
            f"labels of the data match none of the model's: the data has {list_labels(names)}, the"
            f" model {list_labels(model_labels)}; say what they mean with --labels"
            ' "theirs=ours,...", or use --no-labels where a command has it'
        ) from None
