"""The cache of image tables: a split is decoded once, then mapped by every later start and process
of the node.

A split of mixed sizes, or one too large for a table, is checked once instead, and decoded image by
image.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL.Image
import xxhash

from hf_cifar.data import image_store
from hf_cifar.data.decode import (
    BadImage,
    Encoded,
    Pixels,
    decode_all,
    in_order,
    open_image,
    reason,
    to_rgb,
)
from hf_cifar.data.image_store import ImageFiles, ImageTable, check_labels, label_bytes, records
from hf_cifar.errors import UserError

FORMAT = 2  # of a cache entry: raise it when its layout or the decoding changes
TABLE_LIMIT = 8 * 2**30  # bytes; the page cache of a usual machine holds no more beside a model
CHUNK_BYTES = 4 * 2**20  # decoded bytes that a thread hands over at once


@dataclass
class _Meta:
    """What a cache entry says about itself (meta.json, which also holds a sha256 of these fields)."""

    state: str
    kind: str  # "table" | "files"
    rows: int  # of the source, bad ones included
    label_names: list[str]
    fingerprint: str
    bad: list[tuple[int, str, str]]  # row, name, reason
    shape: list[int] = field(default_factory=list)  # of the pixels, if a table
    why: str = ""  # why there is no table
    mixed: bool = False  # there can't be one
    table_bytes: int = 0  # what a table of the first image's size takes
    deep: int = 0  # images with 16 bits a channel
    files: dict[str, str] = field(
        default_factory=dict
    )  # XXH3 digest of each file of the entry, or its size where it is large


def cache_folder() -> Path:
    """`HF_CIFAR_CACHE`, by default `hf_cifar` in the Hugging Face home."""
    if folder := os.environ.get("HF_CIFAR_CACHE"):
        return Path(folder).expanduser()
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "hf_cifar"


def load_images(
    open_split: Callable[[Path], Encoded | Pixels],
    *,
    identity: str,
    state: str,
    where: str,
    data_path: str = "auto",
    on_bad_image: str = "error",
) -> tuple[ImageTable | ImageFiles, str]:
    """The images of one split, from the cache where they are there, and a line for the log.

    open_split(folder) gives the split and may keep files in `folder`, which becomes the cache
    entry. `identity` says which split of which data this is (an entry is replaced, not added, when
    that data changes), `state` stands for its content (names, sizes and times of the files),
    `where` is what messages call it. data_path: "table" or "device", "workers" (decoded on demand)
    or "auto" (a table if all sizes are equal and it fits). UserError for bad images (unless
    on_bad_image is "skip"), labels out of range, sizes that make no table where one is asked for, a
    cache that can't be written. An entry that was altered is built anew.
    """
    from filelock import FileLock

    start = time.perf_counter()
    identity += " on demand" if data_path == "workers" else ""
    entry = cache_folder() / hashlib.sha256(identity.encode()).hexdigest()[:24]
    state = hashlib.sha256(f"{FORMAT} {PIL.__version__} {state}".encode()).hexdigest()
    found = _read(entry, state, where, data_path, open_split)
    cached = found is not None
    if found is None:
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{entry}.lock"):
                # Another process of the node may have built it while this one waited for the lock.
                found = _read(entry, state, where, data_path, open_split)
                cached = found is not None
                if found is None:
                    _build(entry, state, where, data_path, on_bad_image, open_split)
                    found = _read(entry, state, where, data_path, open_split)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise UserError(
                f"the image cache {entry.parent} {'is full' if full else 'cannot be written'} ({reason(error)}); "
                "set HF_CIFAR_CACHE to a folder with room"
            ) from None
    if found is None:
        raise UserError(
            f"the image cache {entry.parent} loses what is written to it; set HF_CIFAR_CACHE elsewhere"
        )
    images, meta = found
    if meta.bad and on_bad_image != "skip":
        raise _bad_image(where, *meta.bad[0][1:])
    return images, _message(where, images, meta, cached, time.perf_counter() - start)


def _read(
    entry: Path,
    state: str,
    where: str,
    data_path: str,
    open_split: Callable[[Path], Encoded | Pixels],
) -> tuple[ImageTable | ImageFiles, _Meta] | None:
    """The cache entry; None if there is none that is whole, of this state and of the kind asked
    for.
    """
    try:
        text = json.loads((entry / "meta.json").read_text())
        if text.pop("sha256") != _digest(text) or text["state"] != state:
            return None
        meta = _Meta(**text)
        if any(_seal(entry / name) != seal for name, seal in meta.files.items()):
            return None
        labels = np.load(entry / "labels.npy", allow_pickle=False)
        bad = [name for _, name, _ in meta.bad]
        if meta.kind == "table":
            pixels = np.asarray(np.load(entry / "pixels.npy", mmap_mode="r", allow_pickle=False))
            if pixels.dtype != np.uint8 or list(pixels.shape) != meta.shape:
                return None
            return ImageTable(pixels, labels, meta.label_names, meta.fingerprint, bad), meta
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    asked = data_path in ("table", "device")
    if asked and meta.mixed:
        raise _no_table(where, data_path, meta.why)
    if asked or (
        data_path == "auto" and not meta.mixed and meta.table_bytes <= _limit(entry.parent)
    ):
        return None
    source = open_split(entry)
    assert not isinstance(source, Pixels)
    rows = np.delete(np.arange(meta.rows), [row for row, _, _ in meta.bad])
    return ImageFiles(source, rows, labels, meta.label_names, meta.fingerprint, bad), meta


def _build(
    entry: Path,
    state: str,
    where: str,
    data_path: str,
    on_bad_image: str,
    open_split: Callable[[Path], Encoded | Pixels],
) -> None:
    """Writes the entry aside, syncs it to the disk and renames it, so that nobody ever sees half of
    one.
    """
    building = entry.with_name(f"{entry.name}.{os.getpid()}.partial")
    for left in entry.parent.glob(
        f"{entry.name}.*.*"
    ):  # by a process that was killed: this one holds the lock now
        shutil.rmtree(left, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        source = open_split(building)
        if not len(source.labels):
            raise UserError(f"{where}: there are no images")
        check_labels(source.labels, source.label_names, where)
        meta = _Meta(state, "table", len(source.labels), source.label_names, "", [])
        if isinstance(source, Pixels):
            _write_table(building, source, meta, where, on_bad_image)
        else:
            if data_path == "workers":
                meta.kind, meta.why = "files", "data_path is workers"
            else:
                _try_table(building, source, meta, where, data_path, on_bad_image)
            if meta.kind == "files":
                _check_files(source, meta, where, on_bad_image)
            else:
                (building / "encoded.arrow").unlink(missing_ok=True)
        labels = np.delete(source.labels, [row for row, _, _ in meta.bad])
        if not len(labels):
            raise UserError(
                f"{where}: none of the {meta.rows} images can be read ({meta.bad[0][1]}: {meta.bad[0][2]})"
            )
        np.save(building / "labels.npy", labels.astype(np.int64))
        meta.files = {path.name: _seal(path) for path in sorted(building.iterdir())}
        text = json.loads(json.dumps(asdict(meta)))
        (building / "meta.json").write_text(json.dumps(text | {"sha256": _digest(text)}))
        for path in building.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if entry.exists():
            stale = entry.with_name(f"{building.name}.stale")
            entry.rename(stale)
            shutil.rmtree(stale, ignore_errors=True)
        building.rename(entry)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _try_table(
    building: Path, source: Encoded, meta: _Meta, where: str, data_path: str, on_bad_image: str
) -> None:
    """Writes the table, or says in `meta` why there is none."""
    first = next((size for row in range(meta.rows) if (size := _size(source, row))), None)
    meta.table_bytes = 3 * first[0] * first[1] * meta.rows if first else 0
    limit = _limit(building)
    if data_path == "auto" and meta.table_bytes > limit:
        meta.kind = "files"
        meta.why = f"a table would take {meta.table_bytes / 2**30:.1f} GiB, the limit here is {limit / 2**30:.1f} GiB"
        return
    try:
        _write_table(building, source, meta, where, on_bad_image)
    except _MixedSizes as error:
        meta.kind, meta.why, meta.mixed = "files", str(error), True
        meta.bad, meta.deep, meta.shape = [], 0, []
        (building / "pixels.npy").unlink()
        if data_path in ("table", "device"):
            raise _no_table(where, data_path, meta.why) from None


class _MixedSizes(Exception):
    """The images do not share a size; the message names two that differ."""


def _write_table(
    building: Path, source: Encoded | Pixels, meta: _Meta, where: str, on_bad_image: str
) -> None:
    """Decodes everything into pixels.npy, in one sequential write (a full disk is then an error,
    not a SIGBUS).
    """
    sha, labels, classes = hashlib.sha256(), source.labels, len(source.label_names)
    size: tuple[int, ...] = ()
    first_name, done = "", 0
    rows_a_chunk = max(1, min(1024, CHUNK_BYTES * meta.rows // max(meta.table_bytes, 1)))
    with (building / "pixels.npy").open("wb") as file:
        for chunk in decode_all(source, rows_a_chunk):
            if chunk.bad and on_bad_image != "skip":
                raise _bad_image(where, *chunk.bad[0][1:])
            meta.bad += chunk.bad
            meta.deep += chunk.deep
            image_store.decoded += 0 if isinstance(source, Pixels) else len(chunk.images)
            for row, image in zip(chunk.rows, chunk.images, strict=True):
                if not size:
                    size = image.shape
                    first_name = "" if isinstance(source, Pixels) else source.name(row)
                    _write_header(file, (meta.rows, *size))
                if image.shape != size:
                    assert not isinstance(source, Pixels)
                    raise _MixedSizes(
                        f"sizes differ ({first_name} is {size[2]} x {size[1]} px, "
                        f"{source.name(row)} {image.shape[2]} x {image.shape[1]})"
                    )
            if chunk.images:
                pixels = np.stack(chunk.images)
                sha.update(records(pixels, labels[chunk.rows], classes))
                file.write(pixels.data)
                done += len(pixels)
        if done:
            file.seek(0)
            _write_header(file, (done, *size))
    meta.fingerprint, meta.shape = sha.hexdigest(), [done, *size]


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """The .npy header; numpy pads it so that a smaller first axis can be written over it."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _check_files(source: Encoded, meta: _Meta, where: str, on_bad_image: str) -> None:
    """Reads every image once: truncated ones are found now and not in the third epoch."""
    sha, starts = hashlib.sha256(), label_bytes(source.labels, len(source.label_names))
    ranges = [range(a, min(a + 16, meta.rows)) for a in range(0, meta.rows, 16)]
    for results in in_order(lambda rows: [_check_image(source, row) for row in rows], ranges):
        for row, data, why, deep in results:
            if why:
                if on_bad_image != "skip":
                    raise _bad_image(where, source.name(row), why)
                meta.bad.append((row, source.name(row), why))
                continue
            meta.deep += deep
            sha.update(starts[row].tobytes() + len(data).to_bytes(8, "big"))
            sha.update(data)
    meta.fingerprint = sha.hexdigest()


def _check_image(source: Encoded, row: int) -> tuple[int, bytes, str, bool]:
    """(row, encoded bytes, what is wrong or "", 16 bits a channel)."""
    try:
        data = source.encoded(row)
        image = open_image(data)
        # A JPEG is read to its end at an eighth of its size, which costs a fraction of decoding it.
        image.draft("RGB", (image.width // 8, image.height // 8))
        to_rgb(image)
    except (BadImage, OSError) as error:
        return row, b"", reason(error), False
    return row, data, "", image.mode.startswith("I;16")


def _size(source: Encoded, row: int) -> tuple[int, int] | None:
    try:
        return open_image(source.encoded(row)).size
    except (BadImage, OSError):
        return None


def _limit(folder: Path) -> int:
    """Bytes that a table may take: `TABLE_LIMIT`, half of the memory and half of the disk that are
    free now.
    """
    import psutil

    return min(
        TABLE_LIMIT, psutil.virtual_memory().available // 2, shutil.disk_usage(folder).free // 2
    )


def _seal(path: Path) -> str:
    """What tells an altered file: a digest, or, where reading all of it at every start would take
    long, its size.
    """
    if (size := path.stat().st_size) > TABLE_LIMIT + 2**20:
        return str(size)
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _digest(meta: dict) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _bad_image(where: str, name: str, why: str) -> UserError:
    return UserError(
        f"{where}: {name} cannot be read as an image ({why}); mend or remove it, or leave it out with on_bad_image: skip"
    )


def _no_table(where: str, data_path: str, why: str) -> UserError:
    return UserError(f"{where}: data_path is {data_path}, but {why}; set data_path to auto")


def _message(
    where: str, images: ImageTable | ImageFiles, meta: _Meta, cached: bool, seconds: float
) -> str:
    if isinstance(images, ImageTable):
        height, width = images.size
        how = "mapped from the cache" if cached else "decoded"
        text = (
            f"{where}: {len(images):,} images of {width} x {height} px in a table of {images.pixels.nbytes / 1e6:.0f} MB, "
            f"{how} in {seconds:.2f} s"
        )
    else:
        how = "checked before" if cached else f"checked in {seconds:.2f} s"
        text = f"{where}: {len(images):,} images, decoded on demand since {meta.why}; {how}"
    if meta.bad:
        text += f"; {len(meta.bad)} bad images left out ({', '.join(name for _, name, _ in meta.bad[:5])}"
        text += ", ...)" if len(meta.bad) > 5 else ")"
    if meta.deep:
        text += f"; {meta.deep} have 16 bits a channel, which PIL and `pipeline` clip at 255: convert them to 8 bits"
    return text
