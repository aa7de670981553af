"""The cache of features: entries named by everything that they depend on, published whole, and
checked against their digest when they are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
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
from hf_cifar.files import atomic_file, json_digest, write_json
from hf_cifar.host import peak_host_memory
from hf_cifar.models.structure import head_name

log = logging.getLogger(__name__)
DIGEST_BYTES = 16  # of the XXH3 digest at the end of an entry
# Keys of a model's config that say what its answers are called, not what its features are.
NAMING_KEYS = (
    "id2label",
    "label2id",
    "label_names",
    "num_labels",
    "num_classes",
    "_name_or_path",
    "transformers_version",
)


@dataclass(frozen=True)
class Cost:
    """The cost of computing features: seconds, and the peak memory of the process until then."""

    seconds: float
    peak_host_memory_bytes: int

    @classmethod
    def since(cls, start: float) -> Cost:
        """Return the cost of what began at `start`, a `time.perf_counter()`, and ends now."""
        return cls(time.perf_counter() - start, peak_host_memory())


def cost_facts(costs: Sequence[Cost | None]) -> dict[str, float | int | None]:
    """Return what metrics.json says of the cost of features that may come from the cache.

    features_runtime_from_nothing: seconds. peak_host_memory_bytes_of_features: of the process that
    computed them. Both are None where a cost is not known.
    """
    known = [cost for cost in costs if cost is not None]
    complete = bool(known) and len(known) == len(costs)
    return {
        "features_runtime_from_nothing": sum(c.seconds for c in known) if complete else None,
        "peak_host_memory_bytes_of_features": max(c.peak_host_memory_bytes for c in known)
        if complete
        else None,
    }


def weights_fingerprint(model: Any) -> str:
    """Return a SHA-256 over what features depend on: every weight but the head's, the architecture,
    and the versions of the libraries that run it.
    """
    config = {k: v for k, v in model.config.to_dict().items() if k not in NAMING_KEYS}
    versions = [torch.__version__, transformers.__version__, timm.__version__]
    description = [type(model).__name__, config, *versions]
    digest = hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode())
    classifier = f"{head_name(model)}."
    for name, tensor in model.state_dict().items():
        if not name.startswith(classifier):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def entry_path(
    cache: Path,
    weights: str,
    batches: ImageBatches,
    views: int,
    *,
    bf16: bool,
    device: torch.device,
    extra: dict[str, Any] | None = None,
) -> Path:
    """Return the file of a cache entry, named by everything that its features depend on.

    weights: the model's `weights_fingerprint`. views: how many views of each image. extra: what
    else the features depend on.
    """
    transforms = batches.transforms
    augmentation = {k: v for k, v in vars(transforms).items() if k != "processor"}
    facts = {
        "weights": weights,
        "processor": transforms.processor.to_json_string(),
        "images": batches.split.images.fingerprint,
        "rows": hashlib.sha256(np.ascontiguousarray(batches.split.rows).tobytes()).hexdigest(),
        "views": views,
        "augmentation": augmentation if batches.training else None,
        "bf16": bf16,
        "device": device.type,
        "float32_precision": torch.backends.fp32_precision,  # type: ignore[attr-defined]
        "channels_last": batches.channels_last,
        "mirrored": batches.mirrored,
    }
    return cache / "features" / f"{json_digest(facts | (extra or {}))[:32]}.npy"


@contextlib.contextmanager
def entry_writer(
    path: Path, shape: tuple[int, ...], dtype: Any
) -> Iterator[Callable[[memoryview], None]]:
    """Yield a function that appends the next bytes of an array to the cache entry `path`.

    The entry is an .npy file with a digest at its end. It appears when the block ends without an
    error. (`np.save` writes a small array through a copy of the file and misses a full disk.)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    digest, header = xxhash.xxh3_128(), io.BytesIO()
    description = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(
        header, {"descr": description, "fortran_order": False, "shape": shape}
    )
    with atomic_file(path) as file:

        def write(data: memoryview) -> None:
            digest.update(data)
            file.write(data)

        write(header.getbuffer())
        yield write
        file.write(digest.digest())


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed processes were writing.

    A writer pauses for a batch at most, and may run on another machine of a shared disk.
    """
    for temporary in folder.glob("*.tmp"):
        with contextlib.suppress(OSError):
            idle = time.time() - temporary.stat().st_mtime
            process = temporary.name.split(".")[-2].rpartition("-")[2]
            ended = process.isdigit() and not psutil.pid_exists(int(process))
            if idle > 3600 or (idle > 60 and ended):
                temporary.unlink()


def load_entry(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the array of a cache entry, memory-mapped, or None where there is none of this shape
    that is as it was written.

    Of the processes of a node, only the one that writes checks the digest.
    """
    try:
        if not path.is_file():
            return None
        if is_local_writer() and not _matches_digest(path):
            raise ValueError
        array = np.load(path, mmap_mode="r")
    except (ValueError, EOFError, OSError):
        log.warning("features: %s is damaged and is computed again", path.name)
        return None
    return array if array.shape == shape else None


def _matches_digest(path: Path) -> bool:
    digest, remaining = xxhash.xxh3_128(), path.stat().st_size - DIGEST_BYTES
    with path.open("rb") as file:
        while remaining > 0 and (chunk := file.read(min(remaining, 2**20))):
            digest.update(chunk)
            remaining -= len(chunk)
        return digest.digest() == file.read()


def write_cost(path: Path, cost: Cost) -> None:
    """Note beside a cache entry what it cost to compute."""
    with contextlib.suppress(OSError):  # a note that can't be kept is no reason to stop
        write_json(path.with_suffix(".json"), asdict(cost))


def read_cost(path: Path) -> Cost | None:
    """Return what a cache entry cost to compute, where it is known."""
    try:
        note = json.loads(path.with_suffix(".json").read_text())
        return Cost(float(note["seconds"]), int(note["peak_host_memory_bytes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
