"""One entry of the image cache: what is asked for, what it says about itself, how it is read."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import xxhash

from hf_cifar.data.decode_split import EncodedImages, RawImages
from hf_cifar.data.deep_pixels import Percentiles, PixelRange
from hf_cifar.data.image_store import ImageFiles, ImageStore, ImageTable
from hf_cifar.errors import UserError
from hf_cifar.files import file_digest, json_digest, write_json

FORMAT = 3  # of an entry: raise it when its layout or the decoding changes
TABLE_LIMIT = 8 * 2**30  # bytes; the page cache of a usual machine holds no more beside a model


@dataclass(frozen=True)
class SplitRequest:
    """One split to be loaded.

    open: gives the split; it may keep files in the folder that it is given, which becomes the cache
        entry.
    identity: which split of which data this is; an entry is replaced, not added, when that data
        changes.
    source_state: stands for its content: names, sizes and times of the files.
    where: what messages call it.
    data_path: "table" or "device", "workers" (decoded on demand), or "auto" (a table if all sizes
        are equal and it fits).
    on_bad_image: "error" or "skip".
    deep: what becomes of pictures with more than 8 bits a channel; None: an error.
    """

    open: Callable[[Path], EncodedImages | RawImages]
    identity: str
    source_state: str
    where: str
    data_path: str = "auto"
    on_bad_image: str = "error"
    deep: PixelRange | Percentiles | None = None

    @functools.cached_property
    def state(self) -> str:
        """Digest of all that an entry for this request is built from."""
        return json_digest([FORMAT, PIL.__version__, repr(self.deep), self.source_state])

    @property
    def entry_name(self) -> str:
        suffix = " on demand" if self.data_path == "workers" else ""
        return json_digest(self.identity + suffix)[:24]

    @property
    def wants_table(self) -> bool:
        return self.data_path in ("table", "device")

    def no_table(self, why: str) -> UserError:
        """Return the error for a table that was asked for and can't be made."""
        return UserError(
            f"{self.where}: data_path is {self.data_path}, but {why}; set data_path to auto"
        )


@dataclass
class EntryMeta:
    """What an entry says about itself (meta.json, which also holds a digest of these fields).

    rows: how many the source has, bad ones included. bad: (row, name, reason). shape: of the
    pixels, if it is a table. why_no_table, mixed_sizes: why there is none, and whether there can't
    be one. table_bytes: what a table of the first picture's size takes. deep: how many pictures
    with more than 8 bits a channel were converted, by pixel_range (`PixelRange.to_config`).
    seconds: how long it took to build the entry. seals: for each file, see `seal`.
    """

    state: str
    kind: str  # "table" | "files"
    rows: int
    label_names: list[str]
    fingerprint: str = ""
    bad: list[tuple[int, str, str]] = field(default_factory=list)
    shape: list[int] = field(default_factory=list)
    why_no_table: str = ""
    mixed_sizes: bool = False
    table_bytes: int = 0
    deep: int = 0
    pixel_range: str | list[float] | None = None
    seconds: float = 0.0
    seals: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write meta.json into the entry's folder, whose other files are complete."""
        self.seals = {path.name: seal(path) for path in sorted(folder.iterdir())}
        fields = json.loads(json.dumps(asdict(self)))
        write_json(folder / "meta.json", fields | {"digest": json_digest(fields)}, indent=None)

    @classmethod
    def read(cls, folder: Path) -> EntryMeta | None:
        """Return what meta.json says; None if it was altered or the files are not those it had."""
        fields: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        if fields.pop("digest") != json_digest(fields):
            return None
        meta = cls(**fields)
        intact = all(seal(folder / name) == before for name, before in meta.seals.items())
        return meta if intact else None


def seal(path: Path) -> str:
    """Return what tells an altered file: a digest, or its size where a digest would take long."""
    if (size := path.stat().st_size) > TABLE_LIMIT + 2**20:
        return str(size)
    return file_digest(path, xxhash.xxh3_128)


def table_limit(folder: Path) -> int:
    """Return how many bytes a table may take: `TABLE_LIMIT`, half of the memory and half of the
    disk that are free now.
    """
    import psutil

    memory, disk = psutil.virtual_memory().available, shutil.disk_usage(folder).free
    return min(TABLE_LIMIT, memory // 2, disk // 2)


def read_entry(folder: Path, request: SplitRequest) -> tuple[ImageStore, EntryMeta] | None:
    """Return a cache entry; None if there is none that is whole and of use for the request.

    Raises UserError where a table is asked for and the entry knows that there can't be one.
    """
    try:
        meta = EntryMeta.read(folder)
        if meta is None or meta.state != request.state:
            return None
        bad = [name for _, name, _ in meta.bad]
        labels = np.load(folder / "labels.npy", allow_pickle=False)
        if meta.kind == "table":
            pixels = np.asarray(np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False))
            if pixels.dtype != np.uint8 or list(pixels.shape) != meta.shape:
                return None
            return ImageTable(pixels, labels, meta.label_names, meta.fingerprint, bad), meta
        looks = np.load(folder / "looks.npy", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if request.wants_table and meta.mixed_sizes:
        raise request.no_table(meta.why_no_table)
    fits = not meta.mixed_sizes and meta.table_bytes <= table_limit(folder.parent)
    if request.wants_table or (request.data_path == "auto" and fits):
        return None
    source = request.open(folder)
    assert not isinstance(source, RawImages)
    rows = np.delete(np.arange(meta.rows), [row for row, _, _ in meta.bad])
    pixel_range = PixelRange.from_config(meta.pixel_range)
    store = ImageFiles(
        source, rows, labels, meta.label_names, meta.fingerprint, bad, looks, pixel_range
    )
    return store, meta
