"""Encoded images to uint8 RGB, exactly as `pipeline` reads them, in threads and in order."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import PIL.Image
import PIL.ImageOps

MAX_SIDE = 65_535  # px: the most that a JPEG can have; a wider image is a mistake or an attack
MAX_PIXELS = 89_478_485  # PIL's own mark for a decompression bomb (a quarter of a GiB in RGB)
# Said by PIL for each odd palette or EXIF block, and nothing the user could act on.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
T = TypeVar("T")
R = TypeVar("R")


class BadImage(Exception):
    """An image that can't be decoded; the message is the reason, without the image's name."""


class Encoded(Protocol):
    """One split of encoded images as a source gives it: int64 labels [N] and the bytes of each row."""

    @property
    def labels(self) -> np.ndarray: ...
    @property
    def label_names(self) -> list[str]: ...
    def encoded(self, row: int) -> bytes:
        """The image file's bytes; OSError where there are none."""
        ...

    def name(self, row: int) -> str:
        """What to call the row in a message: its file, or "row 7"."""
        ...


@dataclass(frozen=True)
class Pixels:
    """One split that is not encoded (the original archives): `chunks()` gives uint8 [n, 3, H, W] in
    order.
    """

    labels: np.ndarray
    label_names: list[str]
    chunks: Callable[[], Iterable[np.ndarray]]


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows: those that decoded and their images (uint8 [3, H, W] each), and those that
    did not.
    """

    rows: list[int]
    images: list[np.ndarray]
    bad: list[tuple[int, str, str]]  # row, name, reason
    deep: int  # images with 16 bits a channel


def open_image(data: bytes) -> PIL.Image.Image:
    """The image with its header read and no pixel decoded. BadImage if it is no image or absurdly
    large.
    """
    if not data:
        raise BadImage("it is empty")
    try:
        image = PIL.Image.open(io.BytesIO(data))
    except PIL.UnidentifiedImageError:
        raise BadImage("its content is no image") from None
    except Exception as error:  # PIL's readers raise nearly anything on broken headers
        raise BadImage(reason(error)) from None
    if max(image.size) > MAX_SIDE or image.width * image.height > MAX_PIXELS:
        raise BadImage(f"it is {image.width} x {image.height} px, too large to decode safely")
    return image


def to_rgb(image: PIL.Image.Image) -> np.ndarray:
    """uint8 [3, H, W], decoded as transformers' `load_image` does: EXIF rotation, then PIL's
    `convert("RGB")`.

    PIL clips 16-bit grey at 255 there, and so does `pipeline`; rescaling it here would part from
    `pipeline`.
    Raises BadImage with the reason.
    """
    try:
        rgb = PIL.ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:
        raise BadImage(reason(error)) from None
    return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1))


def reason(error: Exception) -> str:
    """The first line of an exception."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def decode_rows(source: Encoded, rows: range) -> Chunk:
    """Decodes `rows`; bad images are listed, not raised."""
    good: list[int] = []
    images: list[np.ndarray] = []
    bad: list[tuple[int, str, str]] = []
    deep = 0
    for row in rows:
        try:
            image = open_image(source.encoded(row))
            images.append(to_rgb(image))
        except (BadImage, OSError) as error:
            bad.append((row, source.name(row), reason(error)))
            continue
        good.append(row)
        deep += image.mode.startswith("I;16")
    return Chunk(good, images, bad, deep)


def decode_all(source: Encoded | Pixels, rows_a_chunk: int) -> Iterator[Chunk]:
    """Every row in order, decoded in threads (PIL lets go of the GIL in its decoders)."""
    if isinstance(source, Pixels):
        start = 0
        for pixels in source.chunks():
            yield Chunk(list(range(start, start + len(pixels))), list(pixels), [], 0)
            start += len(pixels)
        return
    n = len(source.labels)
    ranges = [range(a, min(a + rows_a_chunk, n)) for a in range(0, n, rows_a_chunk)]
    yield from in_order(lambda rows: decode_rows(source, rows), ranges)


def in_order(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """work(item) of each item, done in threads, given in order; few results wait at a time, so
    memory stays flat.
    """
    threads = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    with no_bomb_warnings(), ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextlib.contextmanager
def no_bomb_warnings() -> Iterator[None]:
    """Silences PIL's warning about very large images, which `open_image` refuses anyway. Not for
    use inside threads.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
        yield
