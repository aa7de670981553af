"""The cache of images: a split is decoded once, then mapped by every later start and process of the
node.

A split of mixed sizes, or one too large for a table, is checked once instead, and decoded picture
by picture.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

from hf_cifar.data.cache_build import build_entry
from hf_cifar.data.cache_entry import EntryMeta, SplitRequest, read_entry
from hf_cifar.data.decode import reason
from hf_cifar.data.decode_split import bad_image_error
from hf_cifar.data.deep_pixels import PixelRange
from hf_cifar.data.image_store import ImageStore
from hf_cifar.errors import UserError
from hf_cifar.files import publish_folder


class LoadedImages(NamedTuple):
    """A split's images, and what it took to have them.

    message: a line for the log. seconds: what this start took. build_seconds: what it takes from
    nothing, measured when the entry was built. pixel_range: what converted pictures with more than
    8 bits a channel; None if there are none. bad_rows: of the source, which were left out.
    """

    store: ImageStore
    message: str
    seconds: float
    build_seconds: float
    pixel_range: PixelRange | None
    bad_rows: list[int]


def cache_folder() -> Path:
    """Return `HF_CIFAR_CACHE`, by default `hf_cifar` in the Hugging Face home."""
    if folder := os.environ.get("HF_CIFAR_CACHE"):
        return Path(folder).expanduser()
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "hf_cifar"


def load_images(request: SplitRequest) -> LoadedImages:
    """Return the images of one split, from the cache where they are there.

    Raises UserError for bad pictures (unless they are skipped), labels out of range, sizes that
    make no table where one is asked for, and a cache that can't be written. An entry that was
    altered is built anew.
    """
    from filelock import FileLock

    start = time.perf_counter()
    entry = cache_folder() / request.entry_name
    loaded = read_entry(entry, request)
    cached = loaded is not None
    if loaded is None:
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{entry}.lock"):
                # Another process of the node may have built it while this one waited.
                loaded = read_entry(entry, request)
                cached = loaded is not None
                if loaded is None:
                    _build_and_publish(entry, request)
                    loaded = read_entry(entry, request)
        except OSError as error:
            raise UserError(
                f"cannot write to the image cache {entry.parent} ({reason(error)}); free some"
                " space, or set HF_CIFAR_CACHE to another folder"
            ) from None
    if loaded is None:
        raise UserError(
            f"the image cache {entry.parent} loses what is written to it; set HF_CIFAR_CACHE to"
            " another folder"
        )
    store, meta = loaded
    if meta.bad and request.on_bad_image != "skip":
        _, name, why = meta.bad[0]
        raise bad_image_error(request.where, name, why)
    seconds = time.perf_counter() - start
    message = _message(request.where, store, meta, cached, seconds)
    pixel_range = PixelRange.from_config(meta.pixel_range)
    bad_rows = [row for row, _, _ in meta.bad]
    return LoadedImages(store, message, seconds, meta.seconds, pixel_range, bad_rows)


def _build_and_publish(entry: Path, request: SplitRequest) -> None:
    """Build an entry aside and rename it, so that nobody ever sees half of one."""
    # What a killed process left: this process holds the lock now.
    for left in entry.parent.glob(f"{entry.name}.*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    partial = entry.with_name(f"{entry.name}.{os.getpid()}.partial")
    building = partial / "entry"
    try:
        building.mkdir(parents=True)
        build_entry(building, request)
        publish_folder(building, entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _message(where: str, store: ImageStore, meta: EntryMeta, cached: bool, seconds: float) -> str:
    if store.pixels is not None and store.size is not None:
        height, width = store.size
        how = "mapped from the cache" if cached else "decoded"
        text = (
            f"{where}: {len(store):,} images of {width} x {height} px in a table of"
            f" {store.pixels.nbytes / 1e6:.0f} MB, {how} in {seconds:.2f} s"
        )
    else:
        how = "checked before" if cached else f"checked in {seconds:.2f} s"
        text = f"{where}: {len(store):,} images, decoded on demand since {meta.why_no_table}; {how}"
    if meta.bad:
        names = [name for _, name, _ in meta.bad[:5]]
        names += ["..."] if len(meta.bad) > 5 else []
        text += f"; {len(meta.bad)} bad images left out ({', '.join(names)})"
    if meta.deep:
        text += f"; {meta.deep} had more than 8 bits a channel and were converted (deep_pixels)"
    return text
