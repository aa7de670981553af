"""The labels that a recipe asks for, where these are others than those that its splits are cut by:
of another column (`split_column_name`), or of merged classes (`label_map`).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from hf_cifar.data.image_store import ImageStore, check_labels
from hf_cifar.data.sources.columns import Columns
from hf_cifar.data.sources.find import find_source
from hf_cifar.data.splits import Split
from hf_cifar.errors import UserError
from hf_cifar.recipe.recipe import Recipe


class AskedLabels:
    """Gives splits the labels that a recipe asks for; without such keys, they stay as they are.

    Splits that were cut from one image store share one afterwards, too.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._stores: dict[int, ImageStore] = {}

    def of(self, split: Split, part: str) -> Split:
        """Return the split with the labels asked for. No picture is read.

        part: the split of the source that its images are from: train for a cut of train. Raises
        UserError for a column that can't be had, and for a label_map that doesn't fit its classes.
        """
        recipe = self._recipe
        if recipe.split_column_name is None and recipe.label_map is None:
            return split
        if id(split.images) not in self._stores:
            self._stores[id(split.images)] = self._relabelled(split.images, part)
        images = self._stores[id(split.images)]
        return replace(split, images=images, labels=images.labels[split.rows])

    def _relabelled(self, images: ImageStore, part: str) -> ImageStore:
        labels, names = images.labels, images.label_names
        if self._recipe.split_column_name is not None:
            labels, names = _read_labels(self._recipe, images, part)
        if self._recipe.label_map is not None:
            labels, names = merge_classes(labels, names, self._recipe.label_map)
        # The pictures are shared. So is the fingerprint, by which features of them are cached and
        # audits of them are known.
        relabelled: Any = copy.copy(images)
        relabelled.labels, relabelled.label_names = labels, names
        return relabelled


def merge_classes(
    labels: np.ndarray, names: Sequence[str], label_map: Mapping[Any, Sequence[Any]]
) -> tuple[np.ndarray, list[str]]:
    """Return the labels, int64 [n], and names of merged classes.

    label_map: new name -> names of the classes that it stands for. Raises UserError unless it has
    two new names at least and names each class once.
    """
    groups = {str(new): [str(old) for old in olds] for new, olds in label_map.items()}
    listed = Counter(old for olds in groups.values() for old in olds)
    if len(groups) < 2:
        raise UserError("label_map: has one new label only; a classifier needs at least two")
    known = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    if unknown := [old for old in listed if old not in names]:
        raise UserError(
            f"label_map: the data has no class {', '.join(unknown[:5])}; its classes are {known}"
        )
    if repeated := [old for old, count in listed.items() if count > 1]:
        raise UserError(f"label_map: names {', '.join(repeated[:5])} twice; name each class once")
    if left_out := [name for name in names if name not in listed]:
        raise UserError(
            f"label_map: leaves out {', '.join(left_out[:5])}; name each class of the data once"
        )
    numbers = {old: number for number, olds in enumerate(groups.values()) for old in olds}
    merged = np.array([numbers[name] for name in names], dtype=np.int64)[labels]
    return merged, list(groups)


def _read_labels(recipe: Recipe, images: ImageStore, part: str) -> tuple[np.ndarray, list[str]]:
    """Return the labels of the recipe's column for all rows of `images`, and the class names."""
    source = find_source(
        recipe.dataset_name,
        recipe.dataset_revision,
        recipe.dataset_config_name,
        Columns(recipe.image_column_name, recipe.label_column_name),
    )
    where = f"{source.name}, split {part}, column {recipe.label_column_name}"
    with TemporaryDirectory(prefix="hf-cifar-") as folder:
        opened = source.open(part, Path(folder))
        labels, names = np.array(opened.labels), list(opened.label_names)
        if images.bad:  # pictures that were left out have no row in the store
            bad = set(images.bad)
            labels = labels[[opened.name(row) not in bad for row in range(len(labels))]]
    check_labels(labels, names, where)
    if len(labels) != len(images):
        raise UserError(
            f"{where}: has {len(labels):,} labels for {len(images):,} images; the files changed"
            " while they were read, so start again"
        )
    return labels, names
