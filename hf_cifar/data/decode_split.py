"""All pictures of a split, decoded in threads and given in order."""

from __future__ import annotations

import contextlib
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import PIL.Image

from hf_cifar.data.decode import BadImage, DeepImage, open_image, reason, to_rgb
from hf_cifar.data.deep_pixels import PixelRange, is_deep
from hf_cifar.distributed import usable_cores
from hf_cifar.errors import UserError

T = TypeVar("T")
R = TypeVar("R")


class EncodedImages(Protocol):
    """One split of encoded pictures as a source gives it. labels: int64 [N]."""

    @property
    def labels(self) -> np.ndarray: ...
    @property
    def label_names(self) -> list[str]: ...
    def encoded(self, row: int) -> bytes:
        """Return the content of the picture's file. Raises OSError where there is none."""
        ...

    def name(self, row: int) -> str:
        """Return what to call the row in a message: its file, or "row 7"."""
        ...


@dataclass(frozen=True)
class RawImages:
    """One split that is not encoded (the original archives). labels: int64 [N].

    chunks: gives uint8 [n, 3, H, W] in order.
    """

    labels: np.ndarray
    label_names: list[str]
    chunks: Callable[[], Iterable[np.ndarray]]

    def name(self, row: int) -> str:
        """Return what to call the row in a message."""
        return f"row {row}"


@dataclass
class Chunk:
    """Consecutive rows: those that were decoded, and those that could not be.

    images: uint8 [3, H, W] of each row in `rows`. bad: (row, name, reason). refused: pictures with
    more than 8 bits a channel, as (name, error). deep: how many of those were converted.
    """

    rows: list[int] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    bad: list[tuple[int, str, str]] = field(default_factory=list)
    refused: list[tuple[str, DeepImage]] = field(default_factory=list)
    deep: int = 0


def decode_rows(source: EncodedImages, rows: range, pixel_range: PixelRange | None) -> Chunk:
    """Return the pictures of `rows`, decoded; bad ones are listed, not raised."""
    chunk = Chunk()
    for row in rows:
        try:
            image = open_image(source.encoded(row))
            pixels = to_rgb(image, pixel_range)
        except DeepImage as error:
            chunk.refused.append((source.name(row), error))
        except (BadImage, OSError) as error:
            chunk.bad.append((row, source.name(row), reason(error)))
        else:
            chunk.rows.append(row)
            chunk.images.append(pixels)
            chunk.deep += is_deep(image.mode)
    return chunk


def decode_all(
    source: EncodedImages | RawImages, rows_a_chunk: int, pixel_range: PixelRange | None = None
) -> Iterator[Chunk]:
    """Yield every row in order, decoded in threads (PIL releases the GIL in its decoders)."""
    if isinstance(source, RawImages):
        start = 0
        for pixels in source.chunks():
            yield Chunk(list(range(start, start + len(pixels))), list(pixels))
            start += len(pixels)
        return
    ranges = chunk_ranges(len(source.labels), rows_a_chunk)
    yield from in_order(lambda rows: decode_rows(source, rows, pixel_range), ranges)


def chunk_ranges(count: int, rows_a_chunk: int) -> list[range]:
    """Return ranges of at most `rows_a_chunk` that cover 0 to `count`."""
    return [
        range(start, min(start + rows_a_chunk, count)) for start in range(0, count, rows_a_chunk)
    ]


def in_order(
    work: Callable[[T], R],
    items: Iterable[T],
    threads: int | None = None,
    ahead: int | None = None,
) -> Iterator[R]:
    """Yield work(item) of each item in order, done in threads.

    Few results wait at a time, so memory stays flat.

    threads: by default one a core. ahead: how many results may wait, by default two a thread.
    """
    threads = threads or usable_cores()
    ahead = ahead or 2 * threads
    with no_bomb_warnings(), ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextlib.contextmanager
def no_bomb_warnings() -> Iterator[None]:
    """Silence PIL's warning about very large pictures, which `open_image` refuses anyway.

    Not for use inside threads.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
        yield


def bad_image_error(where: str, name: str, why: str) -> UserError:
    """Return the error for a picture that can't be decoded. where: the data set and split."""
    return UserError(
        f"{where}: {name} cannot be read as an image ({why}); repair or remove it, or leave it out"
        " with on_bad_image: skip"
    )


def deep_image_error(where: str, name: str, error: DeepImage) -> UserError:
    """Return the error for a picture with more than 8 bits a channel."""
    return UserError(f"{where}: {name}: {error}; {error.remedy}")
