"""A data set's splits: what the source brings, and the seeded, stratified cuts of what it does not bring.

A source (sources.py) gives labels and images, the cache (cache.py) their table; here they become the splits.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_cifar import archives, arrow, folders
from hf_cifar.cache import load_images
from hf_cifar.errors import UserError
from hf_cifar.sources import Source
from hf_cifar.table import ImageFiles, ImageTable

SAMPLE = Path(__file__).parent / "sample"
TEST_CUT, VALIDATION_CUT, FEW_SHOT = range(3)  # each random choice has its own stream of the seed


@dataclass(frozen=True)
class Split:
    """Some rows of some images, ascending. name: train, validation or test; rows: int64 [n]; labels: int64 [n]."""

    name: str
    images: ImageTable | ImageFiles
    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Data:
    """What a run trains, chooses and scores on; no row is in two splits.

    label_names: one a class. fingerprint: sha256 hex over the splits' images and rows. source: what dataset_name
    said, without the path of a folder. messages: lines for the log.
    """

    train: Split
    validation: Split | None
    test: Split | None
    label_names: list[str]
    fingerprint: str
    source: str
    license: str | None
    messages: list[str]


def find_source(
    dataset_name: str, revision: str | None = None, config: str | None = None, columns: arrow.Columns | None = None
) -> Source:
    """What `dataset_name` names: `sample`, a folder, a CIFAR archive, a Hub id. UserError if there is nothing."""
    columns = columns or arrow.Columns()
    if dataset_name == "sample":
        return arrow.find_parquet(SAMPLE, "sample", config, columns)
    path = Path(dataset_name).expanduser()
    if path.is_dir():
        name = path.resolve().name
        if folder := archives.unpacked(path):
            return archives.find(folder, name)
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return arrow.find_saved(path, name, columns)
        if next(path.rglob("*.parquet"), None):
            return arrow.find_parquet(path, name, config, columns)
        return folders.find(path, name)
    if path.is_file():
        if path.name.endswith((".tar.gz", ".tgz", ".tar")):
            return archives.find(path, path.name)
        raise UserError(f"dataset_name {dataset_name} is a file, but no CIFAR archive (.tar.gz); name a folder")
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", dataset_name):
        raise UserError(f"dataset_name {dataset_name}: there is no such folder; correct the path or set dataset_name: sample")
    return arrow.find_hub(dataset_name, revision, config, columns)


def load_data(recipe: Any) -> Data:
    """The splits that `recipe` asks for.

    In this order: a test split is cut from train (`test_fraction`) if the source brings none; then validation
    (`validation_fraction`) likewise; then train is thinned to `train_samples_per_class`, drawn at random; then
    `max_train_samples` and `max_eval_samples` keep the first images in the order of the data set, by class in
    proportion (`first_rows`), so that data sorted by class keeps all its classes. Cuts are stratified and depend on
    `seed` only. UserError for anything that is wrong with the data (see `cache.load_images`, `find_source`).
    """
    loader = _Loader(recipe)
    splits = loader.splits("train", "validation", "test")
    digest = hashlib.sha256()
    for name, split in splits.items():
        digest.update(f"{name} {split.images.fingerprint} {len(split)} ".encode() + split.rows.astype("<i8").tobytes())
    names, source = splits["train"].images.label_names, loader.source
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
    """The split that `load_data` calls `name`, without reading the others where the source brings it."""
    if name not in ("train", "validation", "test"):
        raise UserError(f"split is {name}; choose train, validation or test")
    loader = _Loader(recipe)
    split = loader.splits(name).get(name)
    if split is None:
        raise UserError(f"{loader.source.name} has no {name} split, and {name}_fraction is 0; choose another split")
    return split


class _Loader:
    def __init__(self, recipe: Any) -> None:
        for key in ("validation_fraction", "test_fraction"):
            if not 0 <= getattr(recipe, key) < 1:
                raise UserError(f"{key} is {getattr(recipe, key)}; it must be at least 0 and below 1")
        self.recipe = recipe
        columns = arrow.Columns(recipe.image_column_name, recipe.label_column_name)
        self.source = find_source(recipe.dataset_name, recipe.dataset_revision, recipe.dataset_config_name, columns)
        self.messages: list[str] = []

    def splits(self, *wanted: str) -> dict[str, Split]:
        """Those of `wanted` that there are."""
        recipe, brought = self.recipe, self.source.splits
        found: dict[str, Split] = {}
        if "train" in wanted or any(name not in brought for name in wanted):
            if "train" not in brought:
                raise UserError(f"{self.source.name} has no train split, only {', '.join(brought)}; name data that has one")
            train = self._whole("train")
            if "test" not in brought and recipe.test_fraction:
                train, found["test"] = self._cut(train, "test", recipe.test_fraction, TEST_CUT)
            if "validation" not in brought and recipe.validation_fraction:
                train, found["validation"] = self._cut(train, "validation", recipe.validation_fraction, VALIDATION_CUT)
            if recipe.train_samples_per_class and "train" in wanted:
                train = self._take(
                    train, few_shot(train.labels, recipe.train_samples_per_class, recipe.seed, train.images.label_names)
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
        return {name: found[name] for name in ("train", "validation", "test") if name in found and name in wanted}

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
        names = images.label_names
        if len(names) < 2:
            raise UserError(f"{self.source.name} has one class only ({names[0]}); a classifier needs at least two")
        counts = np.bincount(images.labels, minlength=len(names))
        if lacking := [names[label] for label in np.flatnonzero(counts == 0)]:
            some = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
            raise UserError(
                f"{self.source.name}, split {name}: no image of class {some} ({len(lacking)} of {len(names)} classes); "
                "add images or remove the class everywhere"
            )
        return Split(name, images, np.arange(len(images), dtype=np.int64), images.labels)

    def _cut(self, train: Split, name: str, fraction: float, stream: int) -> tuple[Split, Split]:
        cut = stratified_cut(train.labels, fraction, self.recipe.seed, stream)
        kept = np.setdiff1d(np.arange(len(train)), cut, assume_unique=True)
        self.messages.append(f"{self.source.name}: {name} is {len(cut):,} images cut from the {len(train):,} of train")
        return self._take(train, kept), replace(self._take(train, cut), name=name)

    @staticmethod
    def _take(split: Split, positions: np.ndarray) -> Split:
        return replace(split, rows=split.rows[positions], labels=split.labels[positions])


def apportion(counts: np.ndarray, total: int, least: np.ndarray, most: np.ndarray) -> np.ndarray:
    """int64 [K] in proportion to `counts`, within [least, most], that sum to `total` (Hamilton's largest remainder).

    Where the bounds do not admit `total`, the nearest sum that they do.
    """
    total = int(np.clip(total, least.sum(), most.sum()))
    exact = counts * (total / counts.sum())
    share = np.clip(np.floor(exact).astype(np.int64), least, most)
    while share.sum() < total:
        share[np.argmax(np.where(share < most, exact - share, -np.inf))] += 1
    while share.sum() > total:
        share[np.argmin(np.where(share > least, exact - share, np.inf))] -= 1
    return share


def stratified_cut(labels: np.ndarray, fraction: float, seed: int, stream: int) -> np.ndarray:
    """Ascending positions of round(fraction * n) labels (int64 [n]), drawn by class in proportion.

    Every class gives one at least and keeps one at least, so a cut of fewer images than classes is as large as the
    number of classes, and a class with a single image keeps it.
    """
    counts = np.bincount(labels)
    most = np.maximum(counts - 1, 0)
    share = apportion(counts, round(fraction * len(labels)), np.minimum(most, 1), most)
    return _draw(labels, share, seed, stream)


def few_shot(labels: np.ndarray, per_class: int, seed: int, names: list[str]) -> np.ndarray:
    """Ascending positions of `per_class` labels of each class, drawn at random. UserError where a class has fewer."""
    counts = np.bincount(labels, minlength=len(names))
    if lacking := [f"{names[label]} ({counts[label]})" for label in np.flatnonzero(counts < per_class)]:
        raise UserError(
            f"train_samples_per_class is {per_class}, but after the cuts there are fewer of {', '.join(lacking[:5])}; lower it"
        )
    return _draw(labels, np.full(len(names), per_class), seed, FEW_SHOT)


def first_rows(labels: np.ndarray, most: int) -> np.ndarray:
    """Ascending positions of `most` labels (all, if there are fewer): by class in proportion, the first of each class.

    At least one of each class, if `most` admits it.
    """
    counts = np.bincount(labels)
    if most >= len(labels):
        return np.arange(len(labels))
    least = np.minimum(counts, 1) if most >= np.count_nonzero(counts) else np.zeros_like(counts)
    share = apportion(counts, most, least, counts)
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:k] for label, k in enumerate(share)]))


def _draw(labels: np.ndarray, share: np.ndarray, seed: int, stream: int) -> np.ndarray:
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream])))
    parts = [random.permutation(np.flatnonzero(labels == label))[:k] for label, k in enumerate(share)]
    return np.sort(np.concatenate(parts))
