"""The splits of a data set, and the seeded, stratified cuts that make the missing ones: of single
images, or of groups of images that stay together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_cifar.data.deep_pixels import PixelRange
from hf_cifar.data.image_store import ImageStore
from hf_cifar.errors import UserError

TEST_CUT, VALIDATION_CUT, FEW_SHOT = range(3)  # each random choice has its own stream of the seed
# Random orders of the groups that a cut is tried in: so many, or fewer where there are many groups,
# which fill any cut well in the first order.
GROUP_ORDERS, GROUPS_TRIED = 20, 50_000


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

    def facts(self) -> dict[str, Any]:
        """Return what metrics.json says about the data."""
        return {
            "dataset": self.source,
            "dataset_license": self.license,
            "dataset_fingerprint": self.fingerprint,
            "train_samples": len(self.train),
            "excluded_samples": self.excluded or None,
            "data_runtime": self.seconds,
            "data_runtime_from_nothing": self.build_seconds,
            "deep_pixels": self.pixel_range.to_config() if self.pixel_range else None,
        }


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


def grouped_cut(
    labels: np.ndarray, groups: np.ndarray, fraction: float, seed: int, stream: int
) -> np.ndarray:
    """Return ascending positions of about `fraction` of the labels (int64 [n]) of each class, which
    hold each group whole or not at all.

    Every class gives one group at least and keeps one at least, as far as there are so many that
    hold it. The groups are tried in random orders, each is taken if that brings the classes nearer
    to their shares, and the order that comes nearest is used. Which groups these are depends on the
    seed and on the groups, not on the order of the rows.

    groups: str [n], the name of each image's group.
    """
    names, numbers = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), int(labels.max()) + 1), np.int64)
    np.add.at(counts, (numbers, labels), 1)
    random = _generator(seed, stream)
    cuts = [
        _take_groups(counts, fraction, random.permutation(len(names)))
        for _ in range(min(GROUP_ORDERS, GROUPS_TRIED // len(names) + 1))
    ]
    _, taken = min(cuts, key=lambda cut: cut[0])
    return np.flatnonzero(taken[numbers])


def _take_groups(
    counts: np.ndarray, fraction: float, order: np.ndarray
) -> tuple[float, np.ndarray]:
    """Return how far a cut is from `fraction` of each class, and which groups it takes, bool [G].

    The distance is that of the chi-square test, sum((taken - wanted)^2 / count) over the classes.

    counts: int64 [G, C], images of each class in each group. order: of the groups.
    """
    total = counts.sum(0)
    wanted, weight = fraction * total, 1 / np.maximum(total, 1)
    cut, taken = np.zeros(len(total), np.int64), np.zeros(len(counts), bool)

    def change(row: np.ndarray) -> float:
        """Return what the distance grows by if a group is taken."""
        return float((weight * row * (2 * (cut - wanted) + row)).sum())

    def leaves_every_class(row: np.ndarray) -> bool:
        return bool(((cut + row < total) | (row == 0)).all())

    for group in order:
        row = counts[group]
        if change(row) < 0 and leaves_every_class(row):
            taken[group] = True
            cut += row
    for label in range(len(total)):
        if cut[label] == 0:
            fitting = [
                (change(counts[group]), place)
                for place, group in enumerate(order)
                if counts[group, label] and leaves_every_class(counts[group])
            ]
            if fitting:
                group = order[min(fitting)[1]]
                taken[group] = True
                cut += counts[group]
    return float((weight * (cut - wanted) ** 2).sum()), taken


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


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream])))


def _draw(labels: np.ndarray, share: np.ndarray, seed: int, stream: int) -> np.ndarray:
    random = _generator(seed, stream)
    parts = [
        random.permutation(np.flatnonzero(labels == label))[:k] for label, k in enumerate(share)
    ]
    return np.sort(np.concatenate(parts))
