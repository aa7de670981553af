"""The original CIFAR-10 and CIFAR-100 archives, or their unpacked folders, in the python and the
binary version.

https://www.cs.toronto.edu/~kriz/cifar.html: 3,072 bytes an image, channel-height-width, 32 x 32.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_cifar.data.decode import reason
from hf_cifar.data.decode_split import RawImages
from hf_cifar.data.regular_files import read_regular_file
from hf_cifar.data.sources.base import Source, file_state
from hf_cifar.data.sources.cifar_pickle import UnsafePickle, read_cifar_pickle
from hf_cifar.errors import UserError
from hf_cifar.files import json_digest


@dataclass(frozen=True)
class Layout:
    """File names of one version.

    label: key of the labels (python), or their byte in a record's head (binary). head: label bytes
    before each image (binary).
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    label: str | int
    names_key: str = ""
    head: int = 1

    def files(self, split: str) -> tuple[str, ...]:
        """Return the files of a split, that of the class names last."""
        return (*(self.train if split == "train" else self.test), self.names)


LAYOUTS = (
    Layout(
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        ("test_batch",),
        "batches.meta",
        "labels",
        "label_names",
    ),
    Layout(
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        ("test_batch.bin",),
        "batches.meta.txt",
        0,
    ),
    Layout(("train",), ("test",), "meta", "fine_labels", "fine_label_names"),
    Layout(("train.bin",), ("test.bin",), "fine_label_names.txt", 1, head=2),
)
FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin", "cifar-100-python", "cifar-100-binary")
IMAGE_BYTES = 3 * 32 * 32
MAX_FILE_BYTES = 256 * 2**20  # CIFAR-100's train file has 155 MB
MAX_ARCHIVE_BYTES = 512 * 2**20  # of all that an archive unpacks to


def unpacked(folder: Path) -> Path | None:
    """Return the folder that holds the files of an archive, `folder` itself or the one that the
    archive unpacks to, or None.
    """
    for path in (folder, *(folder / name for name in FOLDERS)):
        if any(
            (path / layout.names).is_file() and (path / layout.train[0]).is_file()
            for layout in LAYOUTS
        ):
            return path
    return None


def find(path: Path, name: str) -> Source:
    """Return the data set of an archive, or of a folder that `unpacked` returned."""
    state = (
        file_state(path)
        if path.is_file()
        else [file_state(file) for file in sorted(path.iterdir()) if file.is_file()]
    )

    def open_split(split: str, _: Path) -> RawImages:
        read = _tar_reader(path) if path.is_file() else _folder_reader(path)
        layout, files = read(split)
        names = _class_names(files.pop(layout.names), layout, name)
        batches = [
            _batch(files.pop(file), layout, f"{name}: {file}") for file in layout.files(split)[:-1]
        ]
        labels = np.concatenate([labels for _, labels in batches])
        return RawImages(labels, names, lambda: (pixels for pixels, _ in batches))

    identity = f"archive {path.resolve()}"
    return Source(name, None, ("train", "test"), identity, json_digest(state), open_split)


Reader = Callable[[str], tuple[Layout, dict[str, bytes]]]


def _folder_reader(folder: Path) -> Reader:
    """Return a function from a split to its layout and the contents of its files."""

    def read(split: str) -> tuple[Layout, dict[str, bytes]]:
        layout = next(
            layout
            for layout in LAYOUTS
            if (folder / layout.names).is_file() and (folder / layout.train[0]).is_file()
        )
        files = {}
        for file in layout.files(split):
            try:
                files[file] = read_regular_file(folder / file, MAX_FILE_BYTES)
            except OSError as error:
                raise UserError(
                    f"{folder.name}/{file} cannot be read ({reason(error)}); unpack the archive"
                    " again"
                ) from None
        return layout, files

    return read


def _tar_reader(path: Path) -> Reader:
    """Return a function from a split to its layout and the contents of its files."""

    def read(split: str) -> tuple[Layout, dict[str, bytes]]:
        wanted = {file for layout in LAYOUTS for file in layout.files(split)}
        try:
            files = dict(_members(path, wanted))
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise UserError(
                f"{path.name} cannot be unpacked ({reason(error)}); download it again"
            ) from None
        for layout in LAYOUTS:
            if all(file in files for file in layout.files(split)):
                return layout, files
        raise UserError(
            f"{path.name} is no CIFAR archive: it lacks {', '.join(LAYOUTS[0].files(split))}"
        )

    return read


class _Bounded:
    """A stream that ends with an OSError after `MAX_ARCHIVE_BYTES`."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.left = stream, MAX_ARCHIVE_BYTES

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes."""
        data = self.stream.read(min(size, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise OSError(f"it unpacks to over {MAX_ARCHIVE_BYTES / 1e6:.0f} MB")
        return data


def _members(path: Path, wanted: set[str]) -> dict[str, bytes]:
    """Return the content of an archive's files whose last names are `wanted`."""
    files = {}
    with path.open("rb") as packed:
        is_gzip = packed.read(2) == b"\x1f\x8b"
        packed.seek(0)
        bounded: Any = _Bounded(gzip.GzipFile(fileobj=packed) if is_gzip else packed)
        with tarfile.open(fileobj=bounded, mode="r|") as tar:
            for member in tar:
                base = Path(member.name).name
                if member.size > MAX_FILE_BYTES:
                    raise OSError(f"{base} has {member.size / 1e6:,.0f} MB, more than CIFAR's")
                if base in wanted and member.isfile() and (file := tar.extractfile(member)):
                    files[base] = file.read()
    return files


def _unpickle(data: bytes, where: str) -> dict[str, Any]:
    try:
        return read_cifar_pickle(data)
    except (UnsafePickle, ValueError, OverflowError, MemoryError) as error:
        raise UserError(
            f"{where} is not read as a CIFAR pickle ({reason(error)}); download the archive again"
        ) from None


def _class_names(data: bytes, layout: Layout, name: str) -> list[str]:
    if isinstance(layout.label, int):
        return data.decode("utf-8", "replace").split()
    names = _unpickle(data, f"{name}: {layout.names}").get(layout.names_key)
    if not isinstance(names, list) or not all(isinstance(value, str | bytes) for value in names):
        raise UserError(
            f"{name}: {layout.names} has no {layout.names_key}; download the archive again"
        )
    return [
        value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in names
    ]


def _batch(data: bytes, layout: Layout, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 [n, 3, 32, 32] and int64 [n] of one batch file."""
    if isinstance(layout.label, int):
        size = layout.head + IMAGE_BYTES
        if not data or len(data) % size:
            raise UserError(
                f"{where} has {len(data)} bytes, no multiple of {size}: it is truncated; download"
                " it again"
            )
        rows = np.frombuffer(data, np.uint8).reshape(-1, size)
        return rows[:, layout.head :].reshape(-1, 3, 32, 32), rows[:, layout.label].astype(np.int64)
    batch = _unpickle(data, where)
    pixels, labels = batch.get("data"), batch.get(layout.label)
    if not isinstance(pixels, np.ndarray) or pixels.shape[1] != IMAGE_BYTES:
        raise UserError(
            f"{where} has no uint8 array `data` of N x {IMAGE_BYTES}; download the archive again"
        )
    if (
        not isinstance(labels, list)
        or len(labels) != len(pixels)
        or not all(isinstance(label, int) and abs(label) < 2**31 for label in labels)
    ):
        raise UserError(
            f"{where} has no list `{layout.label}` of {len(pixels)} integers; download the archive"
            " again"
        )
    return pixels.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)
