"""Pictures without labels, from a folder or from a data set, as the images of a split."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from hf_cifar.data.deep_pixels import PixelRange
from hf_cifar.data.load import load_split
from hf_cifar.data.looks import LOOK
from hf_cifar.data.sources.folders import pictures_below
from hf_cifar.data.splits import Split
from hf_cifar.errors import UserError
from hf_cifar.evaluation.named_picture import read_picture
from hf_cifar.recipe.recipe import Recipe


class PictureFolder:
    """The pictures in and below a folder as an `ImageStore`, decoded on demand, all of label 0.

    names: their paths. fingerprint: sha256 hex over paths, sizes and times.
    """

    size = None
    pixels = None

    def __init__(self, folder: Path, pixel_range: PixelRange | None) -> None:
        """Find the pictures. Raises UserError for a folder without any."""
        listed = sorted(pictures_below(folder, ""))
        if not listed:
            raise UserError(f"{folder}: no picture in this folder; name one with pictures")
        self._folder, self._pixel_range = folder, pixel_range
        self.names = [str(folder / name) for name, _ in listed]
        self.labels = np.zeros(len(listed), np.int64)
        self.label_names = ["picture"]
        text = "\n".join(f"{name} {state}" for name, state in listed)
        content = f"{folder.resolve()}\n{text}".encode(errors="surrogateescape")
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self.bad: list[str] = []

    def __len__(self) -> int:
        return len(self.names)

    def picture(self, row: int) -> np.ndarray:
        """Return uint8 [H, W, 3]. Raises UserError for a picture that can't be read."""
        return read_picture(self.names[row], self._pixel_range).transpose(1, 2, 0)

    def batch(self, rows: np.ndarray) -> torch.Tensor | list[torch.Tensor]:
        """Return uint8 [B, 3, H, W], or a list of uint8 [3, H, W] where sizes differ."""
        images = [
            torch.from_numpy(read_picture(self.names[int(row)], self._pixel_range)) for row in rows
        ]
        return torch.stack(images) if len({image.shape for image in images}) == 1 else images

    def looks(self, rows: np.ndarray) -> np.ndarray:
        """Return `LOOK` [n] of nothing: these pictures are compared with no others."""
        return np.zeros(len(rows), LOOK)


def load_pictures(name: str, pixel_range: PixelRange | None = None) -> tuple[Split, list[str]]:
    """Return pictures and what to call each of them.

    name: a folder of pictures, in it and below; or else a data set, as `dataset_name` in a recipe,
    of which the test split is taken, or train where there is no other.
    Raises UserError where there are none.
    """
    folder = Path(name).expanduser()
    if folder.is_dir() and not any(folder.rglob("*.parquet")) and not _is_saved(folder):
        store = PictureFolder(folder, pixel_range)
        rows = np.arange(len(store), dtype=np.int64)
        return Split("new pictures", store, rows, store.labels), store.names
    recipe = Recipe(dataset_name=name, validation_fraction=0.0)
    split = load_split(recipe, "test", pixel_range)
    return split, [f"{split.name} {row}" for row in split.rows]


def _is_saved(folder: Path) -> bool:
    """Return whether a folder holds data of another layout than pictures, such as Arrow files."""
    return any(folder.rglob("*.arrow")) or any(folder.glob("data_batch*"))
