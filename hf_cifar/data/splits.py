"""The splits of a data set, and the seeded, stratified cuts that make the missing ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_cifar.data.deep_pixels import PixelRange
from hf_cifar.data.image_store import ImageStore
from hf_cifar.errors import UserError

TEST_CUT, VALIDATION_CUT, FEW_SHOT = range(3)  # each random choice has its own stream of the seed


@dataclass(frozen=True)
class Split:
    """Some rows of some images, ascending.

    name: train, validation or test. rows: int64 [n]. labels: int64 [n].
    """

    name: str
    images: ImageStore
    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Data:
    """The splits that a run trains, chooses and scores on; no row is in two of them.

    label_names: one a class. fingerprint: sha256 hex over the splits' images and rows. source: the
    data set's name, without the path of a folder. messages: lines for the log.
    seconds: what loading took. build_seconds: what it takes with an empty image cache.
    pixel_range: what converted pictures with more than 8 bits a channel; None if there are none.
    excluded: images that `exclude` left out of train.
    """

    train: Split
    validation: Split | None
    test: Split | None
    label_names: list[str]
    fingerprint: str
    source: str
    license: str | None
    messages: list[str]
    seconds: float
    build_seconds: float
    pixel_range: PixelRange | None
    excluded: int = 0


def apportion(counts: np.ndarray, total: int, least: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Return int64 [K] in proportion to `counts`, within [least, most], that sum to `total`
    (Hamilton's largest remainder).

    Where the bounds do not admit `total`, the sum is the nearest that they do.
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
    """Return ascending positions of round(fraction * n) labels (int64 [n]), drawn by class in
    proportion.

    Every class gives one at least and keeps one at least, so a cut of fewer images than classes is
    as large as the number of classes, and a class with a single image keeps it.
    """
    counts = np.bincount(labels)
    most = np.maximum(counts - 1, 0)
    share = apportion(counts, round(fraction * len(labels)), np.minimum(most, 1), most)
    return _draw(labels, share, seed, stream)


def samples_per_class(
    labels: np.ndarray, per_class: int, seed: int, names: list[str]
) -> np.ndarray:
    """Return ascending positions of `per_class` labels of each class, drawn at random.

    Raises UserError where a class has fewer.
    """
    counts = np.bincount(labels, minlength=len(names))
    lacking = [f"{names[label]} ({counts[label]})" for label in np.flatnonzero(counts < per_class)]
    if lacking:
        raise UserError(
            f"train_samples_per_class is {per_class}, but after the cuts there are fewer of"
            f" {', '.join(lacking[:5])}; lower it"
        )
    return _draw(labels, np.full(len(names), per_class), seed, FEW_SHOT)


def first_rows(labels: np.ndarray, most: int) -> np.ndarray:
    """Return ascending positions of `most` labels (all, if there are fewer): by class in
    proportion, the first of each class.

    Each class keeps at least one, if `most` admits that.
    """
    counts = np.bincount(labels)
    if most >= len(labels):
        return np.arange(len(labels))
    least = np.minimum(counts, 1) if most >= np.count_nonzero(counts) else np.zeros_like(counts)
    share = apportion(counts, most, least, counts)
    return np.sort(
        np.concatenate([np.flatnonzero(labels == label)[:k] for label, k in enumerate(share)])
    )


def _draw(labels: np.ndarray, share: np.ndarray, seed: int, stream: int) -> np.ndarray:
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream])))
    parts = [
        random.permutation(np.flatnonzero(labels == label))[:k] for label, k in enumerate(share)
    ]
    return np.sort(np.concatenate(parts))
