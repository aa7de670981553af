"""Files that appear whole or not at all, and their digests."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
REFUSED_WRITES = FULL_DISK | {errno.EROFS, errno.EIO}


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` for writing, and rename it to `path` once it is on disk.

    If the block raises, the temporary file is removed and `path` stays as it was.
    """
    temporary = temporary_path(path)
    file = temporary.open("wb")
    try:
        yield file
        file.flush()
        os.fsync(file.fileno())
        file.close()
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):  # a full disk can refuse the flush of a close, too
            file.close()
        temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Return a name beside `path` that no other process writes to; it ends in `.tmp`."""
    return path.with_name(f"{path.name}.{os.environ.get('RANK', '0')}-{os.getpid()}.tmp")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8; `path` holds either all of it or what it held before."""
    with atomic_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write `value` as JSON; `path` holds either all of it or what it held before."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def sync(*paths: Path) -> None:
    """Wait until files and folders are on the disk."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def publish_folder(aside: Path, final: Path) -> None:
    """Rename the folder `aside` to `final` once all of its files are on disk.

    A folder that is already at `final` is first renamed to `replaced`, beside `aside`.
    """
    sync(*(path for path in sorted(aside.rglob("*")) if path.is_file()), aside)
    if final.exists():
        final.rename(aside.with_name("replaced"))
    aside.rename(final)
    sync(final.parent)


def file_digest(path: Path, algorithm: str | Callable[[], Any] = "sha256") -> str:
    """Return the hex digest of a file; `algorithm` is a name of hashlib or a constructor."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def json_digest(value: Any) -> str:
    """Return the SHA-256 hex digest of a value that JSON can hold; other objects enter as text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def refused_write(error: BaseException) -> str | None:
    """Return why a disk refused a write, or None where `error` means something else.

    Understands Python's own errors, safetensors' and those of `torch.save`.
    """
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        refused = error.errno in REFUSED_WRITES
        return f"{os.strerror(error.errno)}{where}" if refused and error.errno else None
    text = str(error)
    if type(error).__name__ == "SafetensorError" and "os error" in text:
        return text.rpartition("I/O error: ")[2]
    if isinstance(error, RuntimeError) and ("inline_container" in text or "iostream error" in text):
        return "torch.save wrote only a part"
    return None
