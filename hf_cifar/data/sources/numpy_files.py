"""Test sets in numpy files, as CIFAR-10-C and CIFAR-10.1 are published: `fog.npy` or
`cifar10.1_v6_data.npy`, uint8 [N, H, W, 3], with the labels in a second file beside it.

The labels are numbers of CIFAR-10's classes, in its order.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hf_cifar.data.cifar10 import CLASSES
from hf_cifar.data.decode_split import RawImages
from hf_cifar.data.sources.base import Source, file_state
from hf_cifar.errors import UserError

ROWS_A_CHUNK = 4096


def find(path: Path) -> Source:
    """Return the test set in a .npy file of images. Raises UserError if it is none."""
    labels = label_file(path)
    return Source(
        name=path.stem,
        license=None,
        splits=("test",),
        identity=f"numpy {path.resolve()} {labels.name}",
        state=f"{file_state(path)} {file_state(labels)}",
        open=lambda split, folder: _open(path, labels),
    )


def label_file(images: Path) -> Path:
    """Return the file of the labels: `x_labels.npy` for `x_data.npy`, else `labels.npy`.

    Raises UserError where there is none.
    """
    names = [images.name.replace("_data", "_labels"), "labels.npy"]
    candidates = [images.with_name(name) for name in names if name != images.name]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise UserError(
        f"{images.name}: the labels are missing; put them beside it as {candidates[0].name}"
    )


def _open(path: Path, labels_path: Path) -> RawImages:
    pixels, labels = _array(path), _array(labels_path)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
        raise UserError(
            f"{path.name} holds {pixels.dtype} {list(pixels.shape)}; name a file of uint8"
            " [N, H, W, 3]"
        )
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{labels_path.name} holds {labels.dtype} {list(labels.shape)}; labels are whole"
            " numbers, one for each image"
        )
    if len(pixels) != len(labels):
        raise UserError(
            f"{path.name} has {len(pixels):,} images and {labels_path.name} {len(labels):,} labels;"
            " use two files that belong together"
        )
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(CLASSES)):
        raise UserError(
            f"{labels_path.name} has labels from {labels.min()} to {labels.max()}; CIFAR-10's are"
            f" 0 to {len(CLASSES) - 1}"
        )

    def chunks() -> Iterator[np.ndarray]:
        for first in range(0, len(pixels), ROWS_A_CHUNK):
            yield np.ascontiguousarray(pixels[first : first + ROWS_A_CHUNK].transpose(0, 3, 1, 2))

    return RawImages(labels.astype(np.int64), list(CLASSES), chunks)


def _array(path: Path) -> np.ndarray:
    """Return the mapped content of a .npy file. Raises UserError; a pickle is never read."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path.name} can't be read ({reason}); download it again") from None
