"""Folders of small pictures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL.Image

from hf_cifar.data.load import load_data
from hf_cifar.data.splits import Data
from hf_cifar.recipe.fields import TRAINING_DEFAULTS
from hf_cifar.recipe.recipe import Recipe


def noise(seed: int, height: int = 6, width: int = 8) -> np.ndarray:
    """Return uint8 [height, width, 3] of random pixels."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    """Return the content of a picture's file."""
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def class_folders(
    root: Path,
    sizes: tuple[tuple[int, int], ...] = ((8, 6),),
    per_class: int = 6,
    classes: tuple[str, ...] = ("cat", "dog"),
) -> Path:
    """Write CLASS/i.png of random pixels, all different; sizes (width, height) in turn."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            width, height = sizes[i % len(sizes)]
            pixels = noise(1000 * number + i, height, width)
            PIL.Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def loaded(folder: Path | str, *, seed: int = 0, **keys: object) -> Data:
    """Return the data of a folder, as train alone unless the keys say otherwise."""
    keys = {"validation_fraction": 0.0, "test_fraction": 0.0} | keys
    training = TRAINING_DEFAULTS | {"seed": seed}
    return load_data(Recipe(dataset_name=str(folder), training=training, **keys))  # type: ignore[arg-type]
