"""Class folders: train/CLASS/IMAGE and test/CLASS/IMAGE, or CLASS/IMAGE, with images of any size
and mode.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_cifar.data.sources.base import SPLITS, Source, card, digest
from hf_cifar.errors import UserError

IMAGE_SUFFIXES: tuple[str, ...] = (
    ".apng",
    ".avif",
    ".bmp",
    ".dib",
    ".gif",
    ".jfif",
    ".jp2",
    ".jpe",
    ".jpeg",
    ".jpg",
    ".pbm",
    ".pgm",
    ".png",
    ".pnm",
    ".ppm",
    ".tga",
    ".tif",
    ".tiff",
    ".webp",
)


@dataclass(frozen=True)
class FileImages:
    """One image file a row, below `root`; labels: int64 [N]."""

    root: Path
    files: list[str]
    labels: np.ndarray
    label_names: list[str]

    def encoded(self, row: int) -> bytes:
        return (self.root / self.files[row]).read_bytes()

    def name(self, row: int) -> str:
        return self.files[row]


def find(root: Path, name: str) -> Source:
    """The class folders below `root`; hidden files and other suffixes than images' are passed over."""
    folders: dict[str, str] = {}
    for folder in _subfolders(root):
        split = SPLITS.get(folder.lower())
        if split in folders:
            raise UserError(
                f"{name}: folders {folders[split]} and {folder} both name the {split} split; keep one"
            )
        if split:
            folders[split] = folder
    try:
        found = {
            split: _classes(root, folder) for split, folder in (folders or {"train": ""}).items()
        }
    except OSError as error:
        raise UserError(
            f"folder {error.filename} cannot be listed ({error.strerror}); correct its permissions"
        ) from None
    names = sorted({label for classes in found.values() for label in classes})
    if not any(files for classes in found.values() for files in classes.values()):
        raise UserError(
            f"{name}: the folder holds no images in class folders; expected train/CLASS/IMAGE and test/CLASS/IMAGE, "
            "or CLASS/IMAGE, or parquet files in the Hub's layout"
        )

    def open_split(split: str, _: Path) -> FileImages:
        rows = [
            (file, label)
            for label, key in enumerate(names)
            for file, _ in found[split].get(key, [])
        ]
        labels = np.array([label for _, label in rows], dtype=np.int64)
        return FileImages(root, [file for file, _ in rows], labels, names)

    return Source(
        name, card(root)[0], tuple(found), f"classes {root.resolve()}", digest(found), open_split
    )


def _classes(root: Path, folder: str) -> dict[str, list[tuple[str, str]]]:
    """For each class its image files, sorted, with their size and time."""
    return {
        label: sorted(_images(root, os.path.join(folder, label)))
        for label in _subfolders(root / folder)
    }


def _images(root: Path, folder: str) -> Iterator[tuple[str, str]]:
    with os.scandir(root / folder) as entries:
        for entry in entries:
            path = os.path.join(folder, entry.name)
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _images(root, path)
            elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                try:
                    stat = entry.stat()
                    yield path, f"{stat.st_size} {stat.st_mtime_ns}"
                except OSError:  # a dangling link: it is named as a bad image when it is read
                    yield path, "unreadable"


def _subfolders(folder: Path) -> list[str]:
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith(".")
    )
