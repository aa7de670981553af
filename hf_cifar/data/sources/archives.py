"""The original CIFAR-10 and CIFAR-100 archives, or their unpacked folders, in the python and the
binary version.

https://www.cs.toronto.edu/~kriz/cifar.html: 3,072 bytes an image, channel-height-width, 32 x 32.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hf_cifar.data.decode import Pixels, reason
from hf_cifar.data.sources.base import Source, digest, file_state
from hf_cifar.errors import UserError


@dataclass(frozen=True)
class Layout:
    """File names of one version. label: key of the labels (python), or their byte in a record's
    head (binary).
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    label: str | int
    names_key: str = ""
    head: int = 1  # label bytes before each image (binary)


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


class _ArraysOnly(pickle.Unpickler):
    """Admits numpy arrays beside the containers, numbers and bytes that need no import; nothing
    else can run.
    """

    ALLOWED: ClassVar[dict[str, Any]] = {
        "_reconstruct": np.zeros(0).__reduce__()[0],
        "_frombuffer": np.zeros(0).__reduce_ex__(5)[0],
        "ndarray": np.ndarray,
        "dtype": np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if module == "_codecs" and name == "encode":
            return lambda text, _: text.encode("latin1")  # how protocol 2 spells bytes
        if module.split(".")[0] == "numpy" and name in self.ALLOWED:
            return self.ALLOWED[name]
        raise pickle.UnpicklingError(
            f"it would import {module}.{name}, which no CIFAR archive needs"
        )


def unpacked(folder: Path) -> Path | None:
    """The folder that holds the files of an archive: `folder` itself or the one the archive unpacks
    to.
    """
    for path in (folder, *(folder / name for name in FOLDERS)):
        if any(
            (path / layout.names).is_file() and (path / layout.train[0]).is_file()
            for layout in LAYOUTS
        ):
            return path
    return None


def find(path: Path, name: str) -> Source:
    """An archive (.tar.gz) or a folder for which `unpacked` found one."""
    state = (
        file_state(path)
        if path.is_file()
        else [file_state(file) for file in sorted(path.iterdir()) if file.is_file()]
    )

    def open_split(split: str, _: Path) -> Pixels:
        read = _tar_reader(path) if path.is_file() else _folder_reader(path)
        layout, files = read(split)
        names = _class_names(files[layout.names], layout, name)
        wanted = layout.train if split == "train" else layout.test
        parts = [_batch(files.pop(file), layout, f"{name}: {file}") for file in wanted]
        labels = np.concatenate([labels for _, labels in parts])
        return Pixels(labels, names, lambda: (pixels for pixels, _ in parts))

    return Source(
        name, None, ("train", "test"), f"archive {path.resolve()}", digest(state), open_split
    )


Reader = Callable[[str], tuple[Layout, dict[str, bytes]]]


def _needed(layout: Layout, split: str) -> tuple[str, ...]:
    return (*(layout.train if split == "train" else layout.test), layout.names)


def _folder_reader(folder: Path) -> Reader:
    def read(split: str) -> tuple[Layout, dict[str, bytes]]:
        layout = next(
            x for x in LAYOUTS if (folder / x.names).is_file() and (folder / x.train[0]).is_file()
        )
        files = {}
        for file in _needed(layout, split):
            try:
                files[file] = (folder / file).read_bytes()
            except OSError as error:
                raise UserError(
                    f"{folder.name}/{file} cannot be read ({error.strerror}); unpack the archive again"
                ) from None
        return layout, files

    return read


def _tar_reader(path: Path) -> Reader:
    def read(split: str) -> tuple[Layout, dict[str, bytes]]:
        wanted = {file for layout in LAYOUTS for file in _needed(layout, split)}
        files = {}
        try:
            with tarfile.open(path) as tar:
                for member in tar:
                    base = Path(member.name).name
                    if member.isfile() and base in wanted and (file := tar.extractfile(member)):
                        files[base] = file.read()
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise UserError(
                f"{path.name} cannot be unpacked ({reason(error)}); download it again"
            ) from None
        for layout in LAYOUTS:
            if all(file in files for file in _needed(layout, split)):
                return layout, files
        raise UserError(
            f"{path.name} is no CIFAR archive: it lacks {', '.join(_needed(LAYOUTS[0], split))}"
        )

    return read


def _unpickle(data: bytes, where: str) -> dict[str, Any]:
    try:
        found = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
        return {
            key.decode() if isinstance(key, bytes) else str(key): value
            for key, value in found.items()
        }
    except Exception as error:  # a hostile or torn pickle can raise anything
        raise UserError(
            f"{where} is not read as a CIFAR pickle ({reason(error)}); download the archive again"
        ) from None


def _class_names(data: bytes, layout: Layout, name: str) -> list[str]:
    if isinstance(layout.label, int):
        return data.decode("utf-8", "replace").split()
    names = _unpickle(data, f"{name}: {layout.names}").get(layout.names_key)
    if not isinstance(names, list):
        raise UserError(
            f"{name}: {layout.names} has no {layout.names_key}; download the archive again"
        )
    return [
        value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        for value in names
    ]


def _batch(data: bytes, layout: Layout, where: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [n, 3, 32, 32] and int64 [n] of one batch file."""
    if isinstance(layout.label, int):
        size = layout.head + IMAGE_BYTES
        if not data or len(data) % size:
            raise UserError(
                f"{where} has {len(data)} bytes, no multiple of {size}: it is truncated; download it again"
            )
        rows = np.frombuffer(data, np.uint8).reshape(-1, size)
        return rows[:, layout.head :].reshape(-1, 3, 32, 32), rows[:, layout.label].astype(np.int64)
    batch = _unpickle(data, where)
    pixels, labels = batch.get("data"), batch.get(layout.label)
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.ndim != 2
        or pixels.shape[1] != IMAGE_BYTES
    ):
        raise UserError(
            f"{where} has no uint8 array `data` of N x {IMAGE_BYTES}; download the archive again"
        )
    if (
        not isinstance(labels, list)
        or len(labels) != len(pixels)
        or not all(isinstance(x, int) for x in labels)
    ):
        raise UserError(
            f"{where} has no list `{layout.label}` of {len(pixels)} integers; download the archive again"
        )
    return pixels.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)
