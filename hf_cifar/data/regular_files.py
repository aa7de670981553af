"""Reads that end: regular files only, up to a size that is checked before anything is read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

MAX_TEXT_BYTES = 16 * 2**20  # of a card, a list of labels or another text beside pictures


def read_regular_file(path: Path, most_bytes: int) -> bytes:
    """Return the content of a file.

    Raises OSError, whose text has no path, for a pipe, a device, a folder, or a file of more than
    `most_bytes`.
    """
    # Without O_NONBLOCK, opening a pipe that nobody writes to waits for ever.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is not a regular file")
        if status.st_size > most_bytes:
            raise OSError(
                f"it has {status.st_size / 1e6:,.0f} MB, more than the {most_bytes / 1e6:,.0f} MB"
                " that are read"
            )
        return file.read(most_bytes)


def inside(roots: tuple[Path, ...], name: str) -> Path:
    """Return the path of a file; a relative name starts from the first of `roots`.

    Raises OSError for a path that leads out of all roots, by `..` or by a link.
    """
    path = roots[0] / name
    if "\0" not in name:
        real = path.resolve()
        if any(real.is_relative_to(root.resolve()) for root in roots):
            return path
    raise OSError("its path leads out of the data set's folder")
