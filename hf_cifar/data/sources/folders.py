"""Class folders: train/CLASS/PICTURE and test/CLASS/PICTURE, or CLASS/PICTURE, with pictures of any
size and mode.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_cifar.data.decode import MAX_PICTURE_BYTES, PICTURE_SUFFIXES
from hf_cifar.data.regular_files import read_regular_file
from hf_cifar.data.sources.base import SPLITS, Source, read_card
from hf_cifar.errors import UserError
from hf_cifar.files import json_digest


@dataclass(frozen=True)
class FileImages:
    """One picture's file a row, below `root`; labels: int64 [N]."""

    root: Path
    files: list[str]
    labels: np.ndarray
    label_names: list[str]

    def encoded(self, row: int) -> bytes:
        """Return the content of the picture's file. Raises OSError where there is none."""
        return read_regular_file(self.root / self.files[row], MAX_PICTURE_BYTES)

    def name(self, row: int) -> str:
        """Return what to call the row in a message: its file, from `root`."""
        return self.files[row]


def find(root: Path, name: str) -> Source:
    """Return the data set of the class folders below `root`.

    Hidden files, and those without a suffix of pictures, are passed over. Raises UserError if there
    is no picture in a class folder.
    """
    classes = {
        split: {
            label: sorted(pictures_below(root, os.path.join(folder, label)))
            for label in subfolders(root / folder)
        }
        for split, folder in split_folders(root, name).items()
    }
    names = sorted({label for pictures in classes.values() for label in pictures})
    if not any(files for pictures in classes.values() for files in pictures.values()):
        raise UserError(
            f"{name}: the folder holds no pictures in class folders; expected train/CLASS/PICTURE"
            " and test/CLASS/PICTURE, or CLASS/PICTURE, or pictures beside a metadata.csv, or"
            " parquet files in the Hub's layout"
        )

    def open_split(split: str, _: Path) -> FileImages:
        labels = [np.full(len(classes[split].get(key, [])), i) for i, key in enumerate(names)]
        return FileImages(root, files(split), np.concatenate(labels).astype(np.int64), names)

    def files(split: str) -> list[str]:
        return [file for key in names for file, _ in classes[split].get(key, [])]

    identity, state = f"classes {root.resolve()}", json_digest(classes)
    license, splits = read_card(root)[0], tuple(classes)
    return Source(name, license, splits, identity, state, open_split, files=files)


def find_unlabelled(root: Path, name: str) -> Source | None:
    """Return the pictures that lie in `root` itself as a train split, all of the class "picture",
    or None where there are none, or where subfolders hold pictures.
    """
    listed = sorted(pictures_below(root, ""))
    if not listed or any(os.sep in file for file, _ in listed):
        return None

    def open_split(split: str, _: Path) -> FileImages:
        return FileImages(root, files(split), np.zeros(len(listed), dtype=np.int64), ["picture"])

    def files(split: str) -> list[str]:
        return [file for file, _ in listed]

    identity, state = f"pictures {root.resolve()}", json_digest(listed)
    license = read_card(root)[0]
    return Source(name, license, ("train",), identity, state, open_split, files=files)


def split_folders(root: Path, name: str) -> dict[str, str]:
    """Return the subfolder of each split, or {"train": ""} if no subfolder is named after a split.

    Raises UserError if two folders name one split.
    """
    folders: dict[str, str] = {}
    for folder in subfolders(root):
        split = SPLITS.get(folder.lower())
        if split in folders:
            raise UserError(
                f"{name}: folders {folders[split]} and {folder} both name the {split} split; keep"
                " one"
            )
        if split:
            folders[split] = folder
    return folders or {"train": ""}


def pictures_below(
    root: Path, folder: str, above: tuple[tuple[int, int], ...] = ()
) -> Iterator[tuple[str, str]]:
    """Yield each picture's path from `root`, and its size and time, in `root/folder` and below.

    above: device and inode of the folders above, to notice links that lead in circles. Raises
    UserError for a folder that can't be listed.
    """
    with _listed(root / folder) as entries:
        status = os.stat(root / folder)
        here = status.st_dev, status.st_ino
        if here in above:
            raise UserError(
                f"folder {root / folder} is a link to a folder that it lies in; remove the link"
            )
        for entry in entries:
            path = os.path.join(folder, entry.name)
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                yield from pictures_below(root, path, (*above, here))
            elif entry.name.lower().endswith(PICTURE_SUFFIXES):
                try:
                    stat = entry.stat()
                    yield path, f"{stat.st_size} {stat.st_mtime_ns}"
                except OSError:  # a dangling link: it is named as a bad image when it is read
                    yield path, "unreadable"


def subfolders(folder: Path) -> list[str]:
    """Return the sorted names of a folder's folders, hidden ones left out. Raises UserError."""
    with _listed(folder) as entries:
        return sorted(
            entry.name for entry in entries if _is_folder(entry) and not entry.name.startswith(".")
        )


def _listed(folder: Path) -> Any:
    try:
        return os.scandir(folder)
    except PermissionError:
        raise UserError(
            f"folder {folder} cannot be listed (permission denied); correct its permissions"
        ) from None
    except OSError as error:
        raise UserError(f"folder {folder} cannot be listed ({error.strerror}); remove it") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if entry.name.lower().endswith(PICTURE_SUFFIXES):
            return False  # it is named as a bad image when it is read
        raise UserError(
            f"{entry.path} cannot be read ({error.strerror}); remove the link"
        ) from None
