"""IDX files, the format of MNIST and its successors: an array of unsigned bytes below a header."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np

from hf_cifar.data.decode import reason
from hf_cifar.data.regular_files import read_regular_file
from hf_cifar.errors import UserError

UNSIGNED_BYTES = 0x08  # the third byte of the header, which is the type of the values
MOST_BYTES = 2**28  # of a file, packed or unpacked


def read_idx(path: Path) -> tuple[np.ndarray, bytes]:
    """Return the uint8 array of an IDX file that is packed by gzip, and the unpacked content.

    Raises UserError for a file that is too large, cut, or of another format or type.
    """
    try:
        packed = read_regular_file(path, MOST_BYTES)
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise OSError(f"it unpacks to over {MOST_BYTES / 1e6:,.0f} MB")
        return _array(content), content
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(
            f"{path.name} cannot be read as an IDX file ({reason(error)}); download it again"
        ) from None


def _array(content: bytes) -> np.ndarray:
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError("it does not start with two zero bytes")
    kind, dimensions = content[2], content[3]
    if kind != UNSIGNED_BYTES:
        raise ValueError(f"its values are of type {kind:#x}, not unsigned bytes")
    start = 4 + 4 * dimensions
    if not 1 <= dimensions <= 4 or len(content) < start:
        raise ValueError(f"it has {dimensions} dimensions; expected 1 to 4 with their sizes")
    shape = [int(size) for size in np.frombuffer(content[4:start], ">u4")]
    if (stated := math.prod(shape)) != len(content) - start:
        raise ValueError(f"it states {stated:,} values and holds {len(content) - start:,}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
