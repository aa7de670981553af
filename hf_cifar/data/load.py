"""A data set's splits: those that its source brings, and seeded, stratified cuts for the others.

A source gives labels and pictures, the image cache makes an `ImageStore` of them, and here they
become the splits.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from hf_cifar.data.asked_labels import AskedLabels
from hf_cifar.data.cache_entry import SplitRequest
from hf_cifar.data.deep_pixels import Percentiles, PixelRange, deep_setting
from hf_cifar.data.duplicates import in_both
from hf_cifar.data.exclusions import read_exclusions
from hf_cifar.data.groups import has_groups, read_groups
from hf_cifar.data.image_cache import load_images
from hf_cifar.data.label_sets import pool_rare_sets
from hf_cifar.data.sources.columns import Columns
from hf_cifar.data.sources.find import find_source
from hf_cifar.data.splits import (
    TEST_CUT,
    VALIDATION_CUT,
    Data,
    Split,
    first_rows,
    grouped_cut,
    samples_per_class,
    stratified_cut,
)
from hf_cifar.errors import UserError
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.text import visible

log = logging.getLogger(__name__)


def load_data(
    recipe: Recipe, *, needs_labels: bool = True, pixel_range: PixelRange | None = None
) -> Data:
    """Return the splits that `recipe` asks for.

    In this order: a test split is cut from train (`test_fraction`) if the source brings none;
    validation (`validation_fraction`) likewise; pictures that an audit excludes (`exclude`) and
    those that test has too (`drop_test_duplicates`) are taken out of train; train is thinned to
    `train_samples_per_class`, drawn at random; `max_train_samples` and `max_eval_samples` keep the
    first images in the order of the data set, by class in proportion, so that data sorted by class
    keeps all its classes. Cuts are stratified and depend on `seed` only; they take pictures one by
    one, or in the whole groups that `group_column_name` or `group_pattern` names. At last come the
    labels that are asked for, where they are not those of the cuts (`AskedLabels`).

    needs_labels: see `find_source`. pixel_range: of other data, in place of `deep_pixels`. Raises
    UserError for anything that is wrong with the data (see `find_source`, `load_images`).
    """
    loader = _Loader(recipe, pixel_range, needs_labels=needs_labels)
    splits = loader.splits("train", "validation", "test")
    digest = hashlib.sha256()
    for name, split in splits.items():
        digest.update(
            f"{name} {split.images.fingerprint} {len(split)} ".encode()
            + split.rows.astype("<i8").tobytes()
        )
    return Data(
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits.get("test"),
        label_names=splits["train"].images.label_names,
        fingerprint=digest.hexdigest(),
        source=loader.source.name,
        license=loader.source.license,
        messages=loader.messages,
        seconds=loader.seconds,
        build_seconds=loader.build_seconds,
        pixel_range=loader.pixel_range,
        excluded=loader.excluded,
    )


def load_split(recipe: Recipe, name: str, pixel_range: PixelRange | None = None) -> Split:
    """Return the split that `load_data` calls `name`.

    The others are not read where the source brings this one. pixel_range: that of a trained model,
    in place of `deep_pixels`. Raises UserError as `load_data`, and if there is no such split.
    """
    if name not in ("train", "validation", "test"):
        raise UserError(f"split is {name}; choose train, validation or test")
    loader = _Loader(recipe, pixel_range)
    split = loader.splits(name).get(name)
    if split is None:
        raise UserError(
            f"{loader.source.name} has no {name} split, and {name}_fraction is 0; choose another"
            " split"
        )
    return split


def check_classes(source: str, splits: Iterable[Split]) -> list[str]:
    """Raise UserError for splits that no classifier can learn from or be scored on.

    There must be two classes at least, no two of one name, and an image of each class in each split
    that the source brings. Returns messages for the log: classes that differ by case only.

    source: the data set's name, for messages.
    """
    messages: dict[str, None] = {}
    checked: set[int] = set()
    for split in splits:
        if id(split.images) in checked:  # cut from images that were looked at as a whole
            continue
        checked.add(id(split.images))
        names = split.images.label_names
        if len(names) < 2:
            raise UserError(
                f"{source} has only one class ({', '.join(names)}); a classifier needs at least two"
            )
        if repeated := [name for name, count in Counter(names).items() if count > 1]:
            raise UserError(
                f"{source}: more than one class is called {_first_few(repeated)}; rename or merge"
                " them"
            )
        counts = np.bincount(split.images.labels, minlength=len(names))
        if lacking := [names[label] for label in np.flatnonzero(counts == 0)]:
            raise UserError(
                f"{source}, split {split.name}: no image of class {_first_few(lacking)}"
                f" ({len(lacking)} of {len(names)} classes); add images, or remove the class from"
                " every split"
            )
        by_case: dict[str, list[str]] = {}
        for name in names:
            by_case.setdefault(name.casefold(), []).append(name)
        for same in by_case.values():
            if len(same) > 1:
                classes = " and ".join(same)
                messages[
                    f"{source}: the classes {classes} differ by case only; if they mean the same,"
                    " merge them"
                ] = None
    return list(messages)


def _first_few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


class _Loader:
    """Loads splits of one source, and adds up what loading them took and said."""

    def __init__(
        self, recipe: Recipe, pixel_range: PixelRange | None = None, *, needs_labels: bool = True
    ) -> None:
        for key in ("validation_fraction", "test_fraction"):
            if not 0 <= getattr(recipe, key) < 1:
                raise UserError(
                    f"{key} is {getattr(recipe, key)}; it must be at least 0 and below 1"
                )
        self.recipe, self.needs_labels = recipe, needs_labels
        self.source = find_source(
            recipe.dataset_name,
            recipe.dataset_revision,
            recipe.dataset_config_name,
            Columns(
                recipe.image_column_name,
                recipe.split_column_name or recipe.label_column_name,
                several_labels=recipe.objective == "multi_label",
            ),
            needs_labels=needs_labels,
        )
        self.messages = list(self.source.messages)
        self.seconds = self.build_seconds = 0.0
        self.pixel_range: PixelRange | None = None
        self.excluded = 0
        self._deep = pixel_range or deep_setting(recipe.deep_pixels)
        self._bad_rows: dict[str, list[int]] = {}  # of the splits that the source brings

    def splits(self, *wanted: str) -> dict[str, Split]:
        """Return those of `wanted` that there are, cut and thinned as the recipe says."""
        recipe, brought = self.recipe, self.source.splits
        splits: dict[str, Split] = {}
        groups: np.ndarray | None = None  # of the images that the source brings as train
        needs_train = "train" in wanted or isinstance(self._deep, Percentiles)
        if needs_train or any(name not in brought for name in wanted):
            train = self._load("train")
            # Without labels a test split says nothing, so all pictures are learned from.
            scored = self.needs_labels or len(train.images.label_names) > 1
            fractions = {
                "test": recipe.test_fraction if scored else 0.0,
                "validation": recipe.validation_fraction,
            }
            cuts = {n: share for n, share in fractions.items() if share and n not in brought}
            if has_groups(recipe):
                groups = self._groups("train")
                # With several labels a picture, one patient may be the only one with a rare set.
                if cuts and recipe.objective != "multi_label":
                    self._check_groups(train, groups)
            for name, share in cuts.items():
                train, splits[name] = self._cut(train, name, share, groups)
            splits["train"] = train
        for name in ("validation", "test"):
            if name in brought and (name in wanted or self._compares(name, wanted)):
                splits[name] = self._load(name)
                if groups is not None and "train" in wanted:
                    self._compare_groups(groups[splits["train"].rows], name)
        if "train" in wanted:
            splits["train"] = self._exclude(splits["train"])
            splits["train"] = self._thin(splits["train"], splits.get("test"))
        for name, most in (
            ("train", recipe.max_train_samples),
            ("validation", recipe.max_eval_samples),
            ("test", recipe.max_eval_samples),
        ):
            if most and name in splits:
                splits[name] = _take(splits[name], first_rows(splits[name].labels, most))
        asked, of_train = AskedLabels(recipe), splits["train"].images if "train" in splits else None
        return {
            name: asked.of(splits[name], "train" if splits[name].images is of_train else name)
            for name in ("train", "validation", "test")
            if name in splits and name in wanted
        }

    def _compares(self, name: str, wanted: tuple[str, ...]) -> bool:
        return name == "test" and "train" in wanted and self.recipe.drop_test_duplicates

    def _load(self, name: str) -> Split:
        """Return all of a split that the source brings."""
        source = self.source
        if name not in source.splits:
            raise UserError(
                f"{source.name} has no {name} split, only {', '.join(source.splits)}; name data"
                " that has one"
            )
        loaded = load_images(
            SplitRequest(
                open=lambda folder: source.open(name, folder),
                identity=f"{source.identity} {name}",
                source_state=source.state,
                where=f"{source.name}, split {name}",
                data_path=self.recipe.data_path,
                on_bad_image=self.recipe.on_bad_image,
                deep=self._deep,
            )
        )
        if isinstance(self._deep, Percentiles):
            self._deep = loaded.pixel_range  # train's, which is loaded first, for the others too
        self.pixel_range = self.pixel_range or loaded.pixel_range
        self._bad_rows[name] = loaded.bad_rows
        self.messages.append(loaded.message)
        self.seconds += loaded.seconds
        self.build_seconds += loaded.build_seconds
        images = loaded.store
        return Split(name, images, np.arange(len(images), dtype=np.int64), images.labels)

    def _groups(self, name: str) -> np.ndarray:
        """Return the group of each image of a split that the source brings, str [N]."""
        groups = read_groups(self.source, name, self.recipe)
        return np.delete(groups, self._bad_rows[name])

    def _check_groups(self, train: Split, groups: np.ndarray) -> None:
        """Raise UserError for a group that holds all images of a class. groups: str [N]."""
        for label, class_name in enumerate(train.images.label_names):
            holders = np.unique(groups[train.labels == label])
            if len(holders) == 1:
                raise UserError(
                    f"{self.source.name}: group {visible(str(holders[0]), 80)} holds all images of"
                    f" class {visible(class_name, 80)}, so no other split can have any; add images"
                    " of another group, or remove the class"
                )

    def _compare_groups(self, of_train: np.ndarray, name: str) -> None:
        """Warn of groups of train, str [n], that are in a split which the source brings, too."""
        groups = self._groups(name)
        if len(shared := np.intersect1d(groups, of_train)):
            log.warning(
                "%s: %d groups of train are in %s too, with %d of its %d images, so that its score"
                " may be too good; split the data by groups",
                self.source.name,
                len(shared),
                name,
                np.isin(groups, shared).sum(),
                len(groups),
            )

    def _cut(
        self, train: Split, name: str, fraction: float, groups: np.ndarray | None
    ) -> tuple[Split, Split]:
        """Return what remains of train, and the split `name` that is cut from it.

        groups: those of the images of train, str [N], which stay together; None: there are none.
        """
        seed, from_groups, labels = self.recipe.seed, "", train.labels
        several_labels = self.recipe.objective == "multi_label"
        if several_labels:
            labels = pool_rare_sets(labels)
        stream = TEST_CUT if name == "test" else VALIDATION_CUT
        if groups is None:
            positions = stratified_cut(labels, fraction, seed, stream)
        else:
            groups = groups[train.rows]
            positions = grouped_cut(labels, groups, fraction, seed, stream)
            from_groups = f" of {len(np.unique(groups[positions])):,} groups"
        rest = np.setdiff1d(np.arange(len(train)), positions, assume_unique=True)
        self.messages.append(
            f"{self.source.name}: {name} is {len(positions):,} images{from_groups} cut from the"
            f" {len(train):,} of train"
        )
        names = train.images.label_names
        lacking = np.bincount(train.labels[positions], minlength=len(names)) == 0
        if groups is not None and lacking.any() and not several_labels:
            self.messages.append(
                f"{self.source.name}: {name} has no image of class"
                f" {_first_few([names[label] for label in np.flatnonzero(lacking)])}, of which too"
                " few groups are left"
            )
        return _take(train, rest), replace(_take(train, positions), name=name)

    def _exclude(self, train: Split) -> Split:
        """Take what the audit in `exclude` names out of train."""
        if self.recipe.exclude is None:
            return train
        rows = read_exclusions(self.recipe.exclude, train.images.fingerprint)
        listed = np.isin(train.rows, rows)
        self.excluded = int(listed.sum())
        message = f"{self.source.name}: exclude left {self.excluded:,} images out of train"
        if elsewhere := len(rows) - self.excluded:
            message += f"; {elsewhere:,} listed images are in validation or test and stay there"
        self.messages.append(message)
        return self._without(train, listed, "exclude")

    def _thin(self, train: Split, test: Split | None) -> Split:
        """Take duplicates of test images out of train, then draw `train_samples_per_class`."""
        recipe = self.recipe
        if test is not None:
            in_test, in_train = in_both(train, test)
            if in_train.any():
                message = (
                    f"{self.source.name}: {in_train.sum():,} of {len(test):,} test images are in"
                    " train too, exactly by their pixels"
                )
                if recipe.drop_test_duplicates:
                    message += f"; {in_test.sum():,} images were taken out of train"
                    train = self._without(train, in_test, "drop_test_duplicates")
                else:
                    message += "; drop_test_duplicates: true takes them out of train"
                self.messages.append(message)
        if recipe.train_samples_per_class:
            names, per_class = train.images.label_names, recipe.train_samples_per_class
            train = _take(train, samples_per_class(train.labels, per_class, recipe.seed, names))
        return train

    def _without(self, train: Split, left_out: np.ndarray, key: str) -> Split:
        names, rest = train.images.label_names, _take(train, np.flatnonzero(~left_out))
        counts = np.bincount(rest.labels, minlength=len(names))
        if lacking := [names[label] for label in np.flatnonzero(counts == 0)]:
            raise UserError(
                f"{self.source.name}: {key} leaves no image of class"
                f" {_first_few(lacking)} in train; leave the key out or add images"
            )
        return rest


def _take(split: Split, positions: np.ndarray) -> Split:
    return replace(split, rows=split.rows[positions], labels=split.labels[positions])
