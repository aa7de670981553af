"""How an entry of the image cache is built: a table of pixels, or a check of every picture."""

from __future__ import annotations

import hashlib
import io
import time
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from hf_cifar.data.cache_entry import EntryMeta, SplitRequest, table_limit
from hf_cifar.data.decode import BadImage, DeepImage, open_image, reason, to_rgb
from hf_cifar.data.decode_split import (
    EncodedImages,
    RawImages,
    bad_image_error,
    chunk_ranges,
    decode_all,
    deep_image_error,
    in_order,
)
from hf_cifar.data.deep_pixels import (
    SAMPLED_VALUES,
    Percentiles,
    PixelRange,
    deep_values,
    is_deep,
    sample_values,
)
from hf_cifar.data.image_store import check_labels, label_bytes, records
from hf_cifar.data.looks import LOOK, look
from hf_cifar.errors import UserError

CHUNK_BYTES = 4 * 2**20  # decoded bytes that a thread hands over at once
DRAFTED_SIDE = 64  # px; JPEGs of at least this height and width are checked at an eighth of them
TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width


def build_entry(folder: Path, request: SplitRequest) -> None:
    """Write the files of an entry into the empty `folder`.

    Raises UserError for pictures and labels that the request does not admit.
    """
    start = time.perf_counter()
    source = request.open(folder)
    if not len(source.labels):
        raise UserError(f"{request.where}: there are no images")
    check_labels(source.labels, source.label_names, request.where)
    meta = EntryMeta(request.state, "table", len(source.labels), source.label_names)
    if isinstance(source, RawImages):
        _write_table(folder, source, meta, request, None)
    else:
        pixel_range = _pixel_range(source, request)
        if request.data_path == "workers":
            meta.kind, meta.why_no_table = "files", "data_path is workers"
        else:
            _try_table(folder, source, meta, request, pixel_range)
        if meta.kind == "files":
            _check_files(folder, source, meta, request, pixel_range)
        else:
            (folder / "encoded.arrow").unlink(missing_ok=True)
        if meta.deep and pixel_range is not None:
            meta.pixel_range = pixel_range.to_config()
    labels = np.delete(source.labels, [row for row, _, _ in meta.bad])
    if not len(labels):
        _, name, why = meta.bad[0]
        raise UserError(
            f"{request.where}: none of the {meta.rows} images can be read ({name}: {why})"
        )
    _save_array(folder / "labels.npy", labels.astype(np.int64))
    meta.seconds = time.perf_counter() - start
    meta.write(folder)


def _save_array(path: Path, array: np.ndarray) -> None:
    """Write an .npy file; unlike np.save to a file, this never misses that a disk is full."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    path.write_bytes(buffer.getvalue())


def _pixel_range(source: EncodedImages, request: SplitRequest) -> PixelRange | None:
    """Return the range for deep pictures: the request's, or that of percentiles of their values.

    Percentiles are taken over at most `SAMPLED_VALUES`, as many from each picture.
    """
    if not isinstance(request.deep, Percentiles):
        return request.deep
    count = len(source.labels)
    values_a_picture = max(16, SAMPLED_VALUES // count)

    def sample(row: int) -> np.ndarray | None:
        try:
            image = open_image(source.encoded(row))
            return (
                sample_values(deep_values(image), values_a_picture) if is_deep(image.mode) else None
            )
        except Exception:  # it is named as a bad image later
            return None

    samples = [values for values in in_order(sample, range(count)) if values is not None]
    if not samples:
        return None
    low, high = np.percentile(
        np.concatenate(samples), [request.deep.low, request.deep.high]
    ).tolist()
    if low == high:
        raise UserError(
            f"{request.where}: deep_pixels: both percentiles of the pixels are {low:g}; choose"
            " others"
        )
    return PixelRange((low, high))


def _try_table(
    folder: Path,
    source: EncodedImages,
    meta: EntryMeta,
    request: SplitRequest,
    pixel_range: PixelRange | None,
) -> None:
    """Write the table, or say in `meta` why there is none."""
    sizes = (_size(source, row) for row in range(meta.rows))
    first = next((size for size in sizes if size), None)
    meta.table_bytes = 3 * first[0] * first[1] * meta.rows if first else 0
    limit = table_limit(folder)
    if request.data_path == "auto" and meta.table_bytes > limit:
        meta.kind = "files"
        meta.why_no_table = (
            f"a table would take {meta.table_bytes / 2**30:.1f} GiB, the limit here is"
            f" {limit / 2**30:.1f} GiB"
        )
        return
    try:
        _write_table(folder, source, meta, request, pixel_range)
    except _MixedSizes as error:
        if request.wants_table:
            raise request.no_table(str(error)) from None
        meta.kind, meta.why_no_table, meta.mixed_sizes = "files", str(error), True
        meta.bad, meta.deep, meta.shape = [], 0, []
        (folder / "pixels.npy").unlink()


class _MixedSizes(Exception):
    """The images do not share a size; the message names two that differ."""


def _write_table(
    folder: Path,
    source: EncodedImages | RawImages,
    meta: EntryMeta,
    request: SplitRequest,
    pixel_range: PixelRange | None,
) -> None:
    """Decode everything into pixels.npy, in one sequential write: a full disk is then an error and
    not a SIGBUS.
    """
    sha, labels, classes = hashlib.sha256(), source.labels, len(source.label_names)
    size: tuple[int, ...] = ()
    first_name, written = "", 0
    rows_a_chunk = max(1, min(1024, CHUNK_BYTES * meta.rows // max(meta.table_bytes, 1)))
    with (folder / "pixels.npy").open("wb") as file:
        for chunk in decode_all(source, rows_a_chunk, pixel_range):
            _refuse(request, chunk.refused, chunk.bad)
            meta.bad += chunk.bad
            meta.deep += chunk.deep
            for row, image in zip(chunk.rows, chunk.images, strict=True):
                if not size:
                    size, first_name = image.shape, source.name(row)
                    _write_header(file, (meta.rows, *size))
                if image.shape != size:
                    raise _MixedSizes(
                        f"sizes differ ({first_name} is {size[2]} x {size[1]} px,"
                        f" {source.name(row)} {image.shape[2]} x {image.shape[1]})"
                    )
            if chunk.images:
                pixels = np.ascontiguousarray(np.stack(chunk.images))
                sha.update(records(pixels, labels[chunk.rows], classes))
                file.write(pixels.data)
                written += len(pixels)
        if written:
            file.seek(0)
            _write_header(file, (written, *size))
    meta.fingerprint, meta.shape = sha.hexdigest(), [written, *size]


def _refuse(
    request: SplitRequest, refused: list[tuple[str, DeepImage]], bad: list[tuple[int, str, str]]
) -> None:
    """Raise UserError for a deep picture, or for a bad one unless those are skipped."""
    if refused:
        raise deep_image_error(request.where, *refused[0])
    if bad and request.on_bad_image != "skip":
        _, name, why = bad[0]
        raise bad_image_error(request.where, name, why)


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Write the .npy header; numpy pads it so that a smaller first axis can be written over it."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


class _CheckedFile(NamedTuple):
    """A picture that was read once. problem: the error where it is bad or refused."""

    row: int
    encoded: bytes = b""
    look: np.ndarray | None = None
    deep: bool = False
    problem: Exception | None = None


def _check_files(
    folder: Path,
    source: EncodedImages,
    meta: EntryMeta,
    request: SplitRequest,
    pixel_range: PixelRange | None,
) -> None:
    """Read every picture once: truncated ones are found now and not in the third epoch."""
    sha, starts = hashlib.sha256(), label_bytes(source.labels, len(source.label_names))
    rows_a_chunk = max(1, min(16, CHUNK_BYTES * meta.rows // max(meta.table_bytes, 1)))
    looks = []
    for chunk in in_order(
        lambda rows: [_check_file(source, row, pixel_range) for row in rows],
        chunk_ranges(meta.rows, rows_a_chunk),
    ):
        for checked in chunk:
            if checked.look is None:
                name, error = source.name(checked.row), checked.problem
                refused = [(name, error)] if isinstance(error, DeepImage) else []
                bad = [(checked.row, name, reason(error))] if error else []
                _refuse(request, refused, bad)
                meta.bad += bad
                continue
            meta.deep += checked.deep
            sha.update(starts[checked.row].tobytes() + len(checked.encoded).to_bytes(8, "big"))
            sha.update(checked.encoded)
            looks.append(checked.look)
    if meta.deep:
        sha.update(repr(pixel_range).encode())
    _save_array(folder / "looks.npy", np.array(looks, LOOK))
    meta.fingerprint = sha.hexdigest()


def _check_file(source: EncodedImages, row: int, pixel_range: PixelRange | None) -> _CheckedFile:
    try:
        encoded = source.encoded(row)
        image = open_image(encoded)
        width, height = image.size
        if min(width, height) >= DRAFTED_SIDE:
            # A JPEG is read to its end at an eighth of its size, which costs a fraction of
            # decoding all of it.
            image.draft("RGB", (width // 8, height // 8))
        size = (width, height) if image.getexif().get(0x0112) in TURNED else (height, width)
        pixels = to_rgb(image, pixel_range)
    except (BadImage, OSError) as error:
        return _CheckedFile(row, problem=error)
    return _CheckedFile(row, encoded, look(pixels, size), is_deep(image.mode))


def _size(source: EncodedImages, row: int) -> tuple[int, int] | None:
    """Return (width, height) of a picture, or None if it is bad."""
    try:
        return open_image(source.encoded(row)).size
    except (BadImage, OSError):
        return None
