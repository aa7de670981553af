"""A data set's splits: what the source brings, and the seeded, stratified cuts of what it does not
bring.

A source (sources.py) gives labels and images, the cache (cache.py) their table; here they become
the splits.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from hf_cifar.data.image_cache import load_images
from hf_cifar.data.sources import arrow
from hf_cifar.data.sources.find import find_source
from hf_cifar.data.splits import (
    TEST_CUT,
    VALIDATION_CUT,
    Data,
    Split,
    first_rows,
    samples_per_class,
    stratified_cut,
)
from hf_cifar.errors import UserError


def load_data(recipe: Any) -> Data:
    """The splits that `recipe` asks for.

    In this order: a test split is cut from train (`test_fraction`) if the source brings none; then
    validation (`validation_fraction`) likewise; then train is thinned to `train_samples_per_class`,
    drawn at random; then `max_train_samples` and `max_eval_samples` keep the first images in the
    order of the data set, by class in proportion (`first_rows`), so that data sorted by class keeps
    all its classes. Cuts are stratified and depend on `seed` only. UserError for anything that is
    wrong with the data (see `cache.load_images`, `find_source`).
    """
    loader = _Loader(recipe)
    splits = loader.splits("train", "validation", "test")
    digest = hashlib.sha256()
    for name, split in splits.items():
        digest.update(
            f"{name} {split.images.fingerprint} {len(split)} ".encode()
            + split.rows.astype("<i8").tobytes()
        )
    names, source = splits["train"].images.label_names, loader.source
    # check_classes: to be called by the classification objective instead, with data.messages
    loader.messages += check_classes(source.name, splits.values())
    return Data(
        splits["train"],
        splits.get("validation"),
        splits.get("test"),
        names,
        digest.hexdigest(),
        source.name,
        source.license,
        loader.messages,
    )


def load_split(recipe: Any, name: str) -> Split:
    """The split that `load_data` calls `name`, without reading the others where the source brings
    it.
    """
    if name not in ("train", "validation", "test"):
        raise UserError(f"split is {name}; choose train, validation or test")
    loader = _Loader(recipe)
    split = loader.splits(name).get(name)
    if split is None:
        raise UserError(
            f"{loader.source.name} has no {name} split, and {name}_fraction is 0; choose another split"
        )
    # check_classes: to be called by the evaluation instead
    check_classes(loader.source.name, [split])
    return split


def check_classes(source: str, splits: Iterable[Split]) -> list[str]:
    """Raise UserError for splits that no classifier can learn from or be scored on.

    There must be two classes at least, no two of one name, and an image of each class in each split
    that the source brings. Returns messages for the log: classes that differ by case only.

    source: the data set's name, for messages.
    """
    messages: list[str] = []
    checked: set[int] = set()
    for split in splits:
        if id(split.images) in checked:  # cut from a split that was looked at as a whole
            continue
        checked.add(id(split.images))
        names = split.images.label_names
        if len(names) < 2:
            raise UserError(
                f"{source} has only one class ({', '.join(names)}); a classifier needs at least two"
            )
        if repeated := sorted(name for name, count in Counter(names).items() if count > 1):
            raise UserError(
                f"{source}: {_some(repeated)}: more than one class has this name; rename or merge"
                " them"
            )
        counts = np.bincount(split.images.labels, minlength=len(names))
        if lacking := [names[label] for label in np.flatnonzero(counts == 0)]:
            raise UserError(
                f"{source}, split {split.name}: no image of class {_some(lacking)}"
                f" ({len(lacking)} of {len(names)} classes); add images, or remove the class from"
                " every split"
            )
        if not messages:
            by_case: dict[str, list[str]] = {}
            for name in names:
                by_case.setdefault(name.casefold(), []).append(name)
            messages += [
                f"{source}: the classes {' and '.join(same)} differ by case only; merge them if they"
                " mean the same"
                for same in by_case.values()
                if len(same) > 1
            ]
    return messages


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


class _Loader:
    def __init__(self, recipe: Any) -> None:
        for key in ("validation_fraction", "test_fraction"):
            if not 0 <= getattr(recipe, key) < 1:
                raise UserError(
                    f"{key} is {getattr(recipe, key)}; it must be at least 0 and below 1"
                )
        self.recipe = recipe
        columns = arrow.Columns(recipe.image_column_name, recipe.label_column_name)
        self.source = find_source(
            recipe.dataset_name, recipe.dataset_revision, recipe.dataset_config_name, columns
        )
        self.messages: list[str] = []

    def splits(self, *wanted: str) -> dict[str, Split]:
        """Those of `wanted` that there are."""
        recipe, brought = self.recipe, self.source.splits
        found: dict[str, Split] = {}
        if "train" in wanted or any(name not in brought for name in wanted):
            if "train" not in brought:
                raise UserError(
                    f"{self.source.name} has no train split, only {', '.join(brought)}; name data that has one"
                )
            train = self._whole("train")
            if "test" not in brought and recipe.test_fraction:
                train, found["test"] = self._cut(train, "test", recipe.test_fraction, TEST_CUT)
            if "validation" not in brought and recipe.validation_fraction:
                train, found["validation"] = self._cut(
                    train, "validation", recipe.validation_fraction, VALIDATION_CUT
                )
            if recipe.train_samples_per_class and "train" in wanted:
                train = self._take(
                    train,
                    samples_per_class(
                        train.labels,
                        recipe.train_samples_per_class,
                        recipe.seed,
                        train.images.label_names,
                    ),
                )
            found["train"] = train
        for name in ("validation", "test"):
            if name in wanted and name in brought:
                found[name] = self._whole(name)
        for name, most in (
            ("train", recipe.max_train_samples),
            ("validation", recipe.max_eval_samples),
            ("test", recipe.max_eval_samples),
        ):
            if most and name in found:
                found[name] = self._take(found[name], first_rows(found[name].labels, most))
        return {
            name: found[name]
            for name in ("train", "validation", "test")
            if name in found and name in wanted
        }

    def _whole(self, name: str) -> Split:
        images, message = load_images(
            lambda folder: self.source.open(name, folder),
            identity=f"{self.source.identity} {name}",
            state=self.source.state,
            where=f"{self.source.name}, split {name}",
            data_path=self.recipe.data_path,
            on_bad_image=self.recipe.on_bad_image,
        )
        self.messages.append(message)
        return Split(name, images, np.arange(len(images), dtype=np.int64), images.labels)

    def _cut(self, train: Split, name: str, fraction: float, stream: int) -> tuple[Split, Split]:
        cut = stratified_cut(train.labels, fraction, self.recipe.seed, stream)
        kept = np.setdiff1d(np.arange(len(train)), cut, assume_unique=True)
        self.messages.append(
            f"{self.source.name}: {name} is {len(cut):,} images cut from the {len(train):,} of train"
        )
        return self._take(train, kept), replace(self._take(train, cut), name=name)

    @staticmethod
    def _take(split: Split, positions: np.ndarray) -> Split:
        return replace(split, rows=split.rows[positions], labels=split.labels[positions])
