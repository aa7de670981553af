"""Small data sets of every kind, and the recipe that names one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

from hf_cifar.data.hub_layout import write_parquet
from hf_cifar.data.load import check_classes, load_data
from hf_cifar.data.splits import Split
from hf_cifar.recipe.fields import TRAINING_DEFAULTS
from hf_cifar.recipe.recipe import Recipe


def recipe(dataset: Path | str, *, seed: int = 0, **keys: Any) -> Recipe:
    """Return a recipe for a data set."""
    return Recipe(dataset_name=str(dataset), training=TRAINING_DEFAULTS | {"seed": seed}, **keys)


def load_for_a_classifier(recipe: Recipe) -> None:
    """Load the data and check its classes, as the classification objective does."""
    data = load_data(recipe)
    splits = (data.train, data.validation, data.test)
    check_classes(data.source, [split for split in splits if split is not None])


def png(value: int, size: tuple[int, int] = (4, 4)) -> bytes:
    """Return a PNG of one grey, of (width, height) `size`."""
    file = io.BytesIO()
    PIL.Image.new("RGB", size, (value % 256,) * 3).save(file, "PNG")
    return file.getvalue()


def parquet(
    path: Path,
    labels: list[Any],
    column: str = "label",
    names: list[str] | None = None,
    image_type: Any = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write images whose grey value is the row; with `names`, as `datasets` writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [png(row) for row in range(len(labels))]
    if names:
        write_parquet(path, images, np.array(labels), names)
        return
    rows = [{"bytes": image, "path": None} for image in images] if image_type is None else images
    columns = {"picture": pa.array(rows, image_type), column: labels}
    pq.write_table(pa.table(columns | (extra or {})), path)


def class_folder(root: Path, counts: dict[str, int], size: tuple[int, int] = (4, 4)) -> Path:
    """Write root/PATH/i.png for each PATH: count."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / folder / f"{i}.png").write_bytes(png(i, size))
    return root


def class_counts(split: Split) -> list[int]:
    """Return how many images of each class a split has."""
    return np.bincount(split.labels).tolist()
