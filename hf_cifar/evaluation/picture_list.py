"""Which pictures a command line names: files, URLs and folders, or the rows of a data set."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from hf_cifar.data.decode import PICTURE_SUFFIXES, open_image, to_rgb
from hf_cifar.data.decode_split import EncodedImages, RawImages
from hf_cifar.data.deep_pixels import PixelRange
from hf_cifar.data.load import load_split
from hf_cifar.data.sources.base import SPLITS, Source
from hf_cifar.data.sources.find import find_source
from hf_cifar.data.sources.folders import pictures_below
from hf_cifar.errors import UserError
from hf_cifar.evaluation.named_picture import WEB, read_encoded
from hf_cifar.files import json_digest
from hf_cifar.recipe.recipe import Recipe


class Pictures(Protocol):
    """Pictures in order, read one at a time, by several threads at once."""

    def __len__(self) -> int: ...
    def name(self, row: int) -> str:
        """Return the picture's path or URL, or its split and row."""
        ...

    def pixels(self, row: int) -> np.ndarray:
        """Return uint8 [3, H, W]. Raises one of `named_picture.UNREADABLE`."""
        ...


@dataclass(frozen=True)
class PictureList:
    """Pictures that were found but not read.

    fingerprint: sha256 hex over names, sizes and times. has_urls: whether some are downloaded.
    open: gives the pictures; it may keep files in the folder that it is given.
    """

    fingerprint: str
    has_urls: bool
    open: Callable[[Path], Pictures]


@dataclass(frozen=True)
class NamedPictures:
    """Files and URLs. pixel_range: converts pictures with more than 8 bits a channel."""

    names: list[str]
    pixel_range: PixelRange | None

    def __len__(self) -> int:
        return len(self.names)

    def name(self, row: int) -> str:
        return self.names[row]

    def pixels(self, row: int) -> np.ndarray:
        return to_rgb(open_image(read_encoded(self.names[row])), self.pixel_range)


@dataclass(frozen=True)
class EncodedRows:
    """The rows of a split of encoded pictures. pixel_range: as in `NamedPictures`."""

    split: str
    images: EncodedImages
    pixel_range: PixelRange | None

    def __len__(self) -> int:
        return len(self.images.labels)

    def name(self, row: int) -> str:
        return f"{self.split} {row}"

    def pixels(self, row: int) -> np.ndarray:
        return to_rgb(open_image(self.images.encoded(row)), self.pixel_range)


@dataclass(frozen=True)
class TableRows:
    """The rows of a split that its source brings decoded. table: uint8 [N, 3, H, W], mapped."""

    split: str
    table: np.ndarray

    def __len__(self) -> int:
        return len(self.table)

    def name(self, row: int) -> str:
        return f"{self.split} {row}"

    def pixels(self, row: int) -> np.ndarray:
        return np.array(self.table[row])


def expand(word: str) -> list[tuple[str, str]]:
    """Return the name and the state, size and time of change, of each picture that a word stands
    for: those in and below a folder, or the file or URL that it names.

    Raises UserError for a folder without pictures, and for a file that is not there.
    """
    if word.startswith(WEB):
        return [(word, "")]
    path = Path(word)
    if path.is_dir():
        pictures = sorted((str(path / name), state) for name, state in pictures_below(path, ""))
        if not pictures:
            raise UserError(f"{word}: no picture in this folder ({', '.join(PICTURE_SUFFIXES)})")
        return pictures
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # a name may hold a null byte
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{word}: {reason}; name a picture, a folder of pictures or a URL"
        ) from None
    return [(word, f"{status.st_size} {status.st_mtime_ns}")]


def find_pictures(
    words: list[str], split: str | None, pixel_range: PixelRange | None, skip: set[Path]
) -> PictureList:
    """Return the pictures that the words of a command line name.

    words: files, URLs and folders of pictures; or one data set, as `dataset_name` in a recipe.
    split: of a data set; None for test, or train where there is no test. pixel_range: converts
    pictures with more than 8 bits a channel. skip: files and folders that are no data, resolved.
    Raises UserError where there are none.
    """
    alone = len(words) == 1
    data_sets = [word for word in words if _is_data_set(word, alone, skip)]
    if data_sets and not alone:
        raise UserError(f"{data_sets[0]} is a data set; name it alone, without other pictures")
    if data_sets:
        return _rows_of(data_sets[0], split, pixel_range)
    if split is not None:
        raise UserError(f"--split {split}: {words[0]} is no data set; leave --split out")
    listed = [picture for word in words for picture in expand(word)]
    digest = hashlib.sha256()
    for name, state in listed:
        digest.update(f"{name}\n{state}\n".encode(errors="surrogateescape"))
    names = [name for name, _ in listed]
    has_urls = any(name.startswith(WEB) for name in names)
    return PictureList(
        digest.hexdigest(), has_urls, lambda folder: NamedPictures(names, pixel_range)
    )


def _is_data_set(word: str, alone: bool, skip: set[Path]) -> bool:
    """Return whether a word names a data set: an archive, a folder with files of another kind than
    pictures, or, where it stands alone and nothing of that name exists, the sample or a Hub id.
    """
    path = Path(word).expanduser()
    if word.startswith(WEB) or "\0" in word:
        return False
    if path.is_file():
        return path.name.endswith((".tar.gz", ".tgz", ".tar", ".npy"))
    if path.is_dir():
        return _holds_table(path, skip)
    is_picture = word.lower().endswith(PICTURE_SUFFIXES)
    return alone and not is_picture and re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", word) is not None


def _holds_table(root: Path, skip: set[Path]) -> bool:
    """Return whether a folder holds rows of a data set: Arrow files, parquet files that are named
    after a split, or CIFAR's own batches.
    """
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        folders[:] = [name for name in folders if (here / name).resolve() not in skip]
        for name in files:
            if name.endswith(".arrow") or re.fullmatch(r"data_batch_\d(\.bin)?", name):
                return True
            if name.endswith(".parquet") and (here / name).resolve() not in skip:
                inside = os.path.relpath(here / name, root).lower()
                if SPLITS.keys() & set(re.split(r"[-_./]", inside)):
                    return True
    return False


def _rows_of(name: str, split: str | None, pixel_range: PixelRange | None) -> PictureList:
    """Return the pictures of a split of a data set. Raises UserError where there is none."""
    source = find_source(name)
    if split is None:
        split = "test" if "test" in source.splits else source.splits[0]
    if split not in source.splits:
        raise UserError(
            f"{name} has no {split} split; its splits are {', '.join(source.splits)}: choose one"
            " with --split"
        )
    fingerprint = json_digest([source.identity, source.state, split])
    chosen = split
    return PictureList(
        fingerprint, False, lambda folder: _open_rows(source, name, chosen, folder, pixel_range)
    )


def _open_rows(
    source: Source, name: str, split: str, folder: Path, pixel_range: PixelRange | None
) -> Pictures:
    images = source.open(split, folder)
    if not isinstance(images, RawImages):
        return EncodedRows(split, images, pixel_range)
    table = load_split(Recipe(dataset_name=name, validation_fraction=0.0), split).images.pixels
    assert table is not None  # of what a source brings decoded, the cache always makes a table
    return TableRows(split, table)
