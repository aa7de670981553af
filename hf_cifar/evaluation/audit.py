"""What is wrong with a data set: labels, duplicates, outliers, blank and broken pictures."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_cifar.data.load import load_data
from hf_cifar.data.picture_names import picture_names
from hf_cifar.data.splits import Data, Split
from hf_cifar.evaluation.duplicate_pictures import Pair, find_neighbours
from hf_cifar.evaluation.label_issues import check_cleanlab, find_label_issues
from hf_cifar.features.frozen_backbone import load_frozen
from hf_cifar.recipe.recipe import Recipe

log = logging.getLogger(__name__)
BLANK_DEVIATION = 2.0  # of 255; a picture whose pixels deviate less from their mean shows nothing
OUTLIER_SHARE = 0.005  # of the pictures: those farthest from their neighbours are listed


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    facts: what --json prints. rows: those of audit.parquet, see `data.exclusions.COLUMNS`.
    fingerprints: of the images that the rows of each split number.
    """

    data: Data
    facts: dict[str, Any]
    rows: list[dict[str, Any]]
    fingerprints: dict[str, str]

    def picture(self, split: str, row: int) -> np.ndarray:
        """Return uint8 [H, W, 3] of a row of the images that a split is part of."""
        return getattr(self.data, split).images.picture(row)


def audit(recipe: Recipe) -> Audit:
    """Return what is wrong with the data that a recipe names, by features of its backbone.

    All splits are looked at together. Pictures that can't be read are listed and left out.
    Raises UserError for data that can't be had, and where cleanlab is not installed.
    """
    check_cleanlab()
    start = time.perf_counter()
    recipe.on_bad_image, recipe.exclude = "skip", None
    recipe.drop_test_duplicates = False
    if recipe.validation_fraction and "validation_fraction" not in recipe.overrides:
        recipe.validation_fraction = 0.0  # no split that the data does not bring itself
    data = load_data(recipe)
    splits = [split for split in (data.train, data.validation, data.test) if split is not None]
    for message in data.messages:
        log.info("%s", message)
    places = _Places(recipe, data.source, splits)
    frozen, _ = load_frozen(recipe, data.label_names)
    features = torch.from_numpy(np.concatenate([frozen.features(s) for s in splits]))
    features = features.to(frozen.device)
    labels = np.concatenate([split.labels for split in splits])

    rows = _label_rows(places, features, labels, data.label_names, recipe.seed)
    neighbours = find_neighbours(features, places.digests(), places.same_pixels)
    rows += [_duplicate_row(places, pair) for pair in neighbours.pairs]
    rows += _outlier_rows(places, neighbours.distance)
    rows += places.blank_rows()
    facts = {
        "label_issues": [
            _only(r, "given", "suggested", "score") for r in rows if r["kind"] == "label"
        ],
        "duplicates": [
            {
                "split_a": row["split"],
                "row_a": row["row"],
                "split_b": row["other_split"],
                "row_b": row["other_row"],
                "kind": row["kind"].removeprefix("duplicate "),
                "cosine": row["score"],
            }
            for row in rows
            if row["kind"].startswith("duplicate")
        ],
        "outliers": [_only(row, "score") for row in rows if row["kind"] == "outlier"],
        "blank": [_only(row, "score") for row in rows if row["kind"] == "blank"],
        "broken": {split.name: split.images.bad for split in splits if split.images.bad},
        "classes": {split.name: _class_counts(split) for split in splits},
        "sizes": {split.name: _sizes(split) for split in splits},
        "images": len(labels),
        "dataset": data.source,
        "seconds": time.perf_counter() - start,
    }
    fingerprints = {split.name: split.images.fingerprint for split in splits}
    return Audit(data, facts, rows, fingerprints)


class _Places:
    """Every image of every split by its place, 0 to n - 1."""

    def __init__(self, recipe: Recipe, source: str, splits: list[Split]) -> None:
        self.splits = splits
        self.starts = np.cumsum([0, *map(len, splits)])
        self.names: dict[str, list[str | None]] = {}
        for split in splits:
            # A split that was cut from train has the names of train.
            brought = "train" if split.images is splits[0].images else split.name
            self.names[split.name] = picture_names(recipe, brought, split.images)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def locate(self, place: int) -> tuple[Split, int]:
        """Return the split of a place and the row of its images there."""
        number = int(np.searchsorted(self.starts, place, side="right")) - 1
        split = self.splits[number]
        return split, int(split.rows[place - self.starts[number]])

    def row(self, place: int, kind: str, score: float, **more: Any) -> dict[str, Any]:
        """Return a row of audit.parquet about a place."""
        split, row = self.locate(place)
        file = self.names[split.name][row]
        given = split.images.label_names[int(split.images.labels[row])]
        return {
            "split": split.name,
            "row": row,
            "file": file,
            "kind": kind,
            "given": given,
            "suggested": None,
            "score": score,
            "other_split": None,
            "other_row": None,
            "exclude": False,
        } | more

    def digests(self) -> np.ndarray:
        return np.concatenate([split.images.looks(split.rows)["digest"] for split in self.splits])

    def picture(self, place: int) -> np.ndarray:
        split, row = self.locate(place)
        return split.images.picture(row)

    def same_pixels(self, first: int, second: int) -> bool:
        return np.array_equal(self.picture(first), self.picture(second))

    def blank_rows(self) -> list[dict[str, Any]]:
        rows = []
        for place in range(len(self)):
            deviation = float(self.picture(place).std(axis=(0, 1)).max())
            if deviation < BLANK_DEVIATION:
                rows.append(self.row(place, "blank", deviation, exclude=True))
        return rows


def _label_rows(
    places: _Places, features: torch.Tensor, labels: np.ndarray, names: list[str], seed: int
) -> list[dict[str, Any]]:
    counts = np.bincount(labels, minlength=len(names))
    if len(names) < 2 or counts.min() < 2:
        log.warning("audit: labels are not checked, since a class has fewer than two images")
        return []
    issues = find_label_issues(features, labels, len(names), seed)
    return [
        places.row(
            int(place),
            "label",
            float(issues.scores[place]),
            suggested=names[int(issues.suggested[place])],
            exclude=True,
        )
        for place in issues.wrong
    ]


def _duplicate_row(places: _Places, pair: Pair) -> dict[str, Any]:
    """Return the row of a pair. Of an exact pair across splits train's picture is excluded; within
    train, the later one.
    """
    (first, first_row), (second, second_row) = places.locate(pair.first), places.locate(pair.second)
    mine, (other, other_row) = pair.first, (second, second_row)
    if first.name == second.name:
        mine, (other, other_row) = pair.second, (first, first_row)
    return places.row(
        mine,
        f"duplicate {pair.kind}",
        pair.cosine,
        other_split=other.name,
        other_row=other_row,
        exclude=pair.kind == "exact",
    )


def _outlier_rows(places: _Places, distance: np.ndarray) -> list[dict[str, Any]]:
    count = int(np.ceil(OUTLIER_SHARE * len(distance)))
    worst = np.argsort(-distance, kind="stable")[:count]
    return [places.row(int(place), "outlier", float(distance[place])) for place in worst]


def _only(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: row[name] for name in ("split", "row", "file", *names)}


def _class_counts(split: Split) -> dict[str, int]:
    names = split.images.label_names
    return dict(zip(names, np.bincount(split.labels, minlength=len(names)).tolist(), strict=True))


def _sizes(split: Split) -> dict[str, int]:
    """Return how many pictures have each size, the most frequent ten first."""
    sizes = Counter(
        f"{width} x {height}" for height, width in split.images.looks(split.rows)["size"]
    )
    return dict(sizes.most_common(10))
