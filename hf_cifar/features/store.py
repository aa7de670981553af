"""Cache entries of features: written aside, published whole, checked when read."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import timm
import torch
import transformers
import xxhash

from hf_cifar.data.batches import ImageBatches
from hf_cifar.distributed import is_local_writer
from hf_cifar.models.structure import head

log = logging.getLogger(__name__)
DIGEST = 16  # bytes of an XXH3 digest, at the end of a cache entry


def weights_fingerprint(model: Any) -> str:
    """SHA-256 over every weight but the head's, the architecture and the libraries that run it:
    what the features depend on.
    """
    own = head(model)[0] + "."
    labels = (
        "id2label",
        "label2id",
        "label_names",
        "num_labels",
        "num_classes",
        "_name_or_path",
        "transformers_version",
    )
    config = {k: v for k, v in model.config.to_dict().items() if k not in labels}
    about = [
        type(model).__name__,
        config,
        torch.__version__,
        transformers.__version__,
        timm.__version__,
    ]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        if not name.startswith(own):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(
                tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            )
    return digest.hexdigest()


def feature_key(
    weights: str, batches: ImageBatches, views: int, bf16: bool, more: dict[str, Any] | None = None
) -> str:
    """Name of a cache entry: everything that the features depend on."""
    t = batches.transforms
    rows = hashlib.sha256(np.ascontiguousarray(batches.split.rows).tobytes()).hexdigest()
    parts = {
        "weights": weights,
        "processor": t.processor.to_json_string(),
        "images": batches.split.images.fingerprint,
        "rows": rows,
        "views": views,
        "augment": {k: v for k, v in vars(t).items() if k != "processor"}
        if batches.training
        else None,
        "bf16": bf16,
        "channels_last": batches.channels_last,
        "mirrored": batches.mirrored,
    } | (more or {})
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


class Entry:
    """A cache entry in the making: an .npy file with a digest of it at its end, written aside and
    renamed once it is whole.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        self.path, self.aside = (
            path,
            path.with_suffix(f".{os.environ.get('RANK', '0')}-{os.getpid()}.tmp"),
        )
        self.file, self.digest, header = self.aside.open("wb"), xxhash.xxh3_128(), io.BytesIO()
        about = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(header, about)
        self.write(header.getbuffer())

    def write(self, data: memoryview) -> None:
        """The next of the array's bytes. np.save writes a small array by a copy of the file and
        doesn't see that it fails.
        """
        self.digest.update(data)
        self.file.write(data)

    def publish(self) -> None:
        self.file.write(self.digest.digest())
        self.file.flush()
        os.fsync(self.file.fileno())
        self.aside.replace(self.path)

    def close(self) -> None:
        """Whatever has happened; what was not published is removed."""
        with contextlib.suppress(OSError):
            self.file.close()
        self.aside.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove what killed processes were writing: a writer pauses for a batch at most, and may run
    on another machine.
    """
    for left in folder.glob("*.tmp"):
        with contextlib.suppress(OSError):
            paused, pid = (
                time.time() - left.stat().st_mtime,
                left.name.split(".")[-2].rpartition("-")[2],
            )
            if paused > 3600 or (paused > 60 and pid.isdigit() and not psutil.pid_exists(int(pid))):
                left.unlink()


def _whole(path: Path) -> bool:
    digest, left = xxhash.xxh3_128(), path.stat().st_size - DIGEST
    with path.open("rb") as file:
        while left > 0 and (chunk := file.read(min(left, 2**20))):
            digest.update(chunk)
            left -= len(chunk)
        return digest.digest() == file.read()


def load_entry(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array of a cache entry, memory-mapped; None where there is none that is as it was written
    and of this shape.

    Of a node's processes the one that writes looks at the content.
    """
    try:
        if not path.is_file():
            return None
        if is_local_writer() and not _whole(path):
            raise ValueError
        found = np.load(path, mmap_mode="r")
    except (ValueError, EOFError, OSError):
        log.warning("features: %s is damaged; computed anew", path.name)
        return None
    return found if found.shape == shape else None
