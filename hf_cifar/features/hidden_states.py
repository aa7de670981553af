"""The hidden states that enter the first block that trains: computed once, cached, and served in
whole batches.
"""

from __future__ import annotations

import logging
import multiprocessing
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from hf_cifar.data.batches import ImageBatches
from hf_cifar.distributed import all_processes, cores_for_each_process, is_local_writer
from hf_cifar.features.extract import run_over_images
from hf_cifar.features.lower_blocks import STORED, CannotCache, FrozenLowerBlocks
from hf_cifar.features.store import (
    Cost,
    entry_path,
    entry_writer,
    load_entry,
    read_cost,
    write_cost,
)
from hf_cifar.training.progress import image_progress

log = logging.getLogger(__name__)
DISK_SHARE = 0.5  # of the free disk that hidden states may take
RESIDENT_SHARE = 0.5  # of the free device memory that hidden states of one set may take
ROWS_AT_ONCE = 1024  # images that are copied to the device
PREFETCHERS = 4  # processes that gather hidden states for a GPU that has no room for them


class HiddenStateBatches(torch.utils.data.Dataset):
    """Whole batches of hidden states by ticket, for a model with its `FrozenLowerBlocks` installed.

    A ticket is epoch * n + index; epoch e uses view e modulo the number of views.

    values: [views, n, *lower.shape] of the stored dtype. labels: [n, ...].
    """

    def __init__(self, values: np.ndarray, labels: np.ndarray, lower: FrozenLowerBlocks) -> None:
        self.values, self.labels, self.lower = values, labels, lower
        self.resident = _on_device(values, lower.device)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def workers(self) -> int:
        """How many data loader workers gather batches while the device computes.

        One process gathers and pins 4,400 images/s of ViT-H/14's, fewer than its last two blocks
        train on in a second. Only a forked worker has the arrays without a copy.
        """
        forks = multiprocessing.get_start_method() == "fork"
        if self.lower.device.type != "cuda" or self.resident is not None or not forks:
            return 0
        return min(PREFETCHERS, cores_for_each_process())

    def __getitems__(self, tickets: list[int]) -> dict[str, torch.Tensor]:
        """Return {labels} with {stored: [B, *shape]}, or {rows: int64 [B]} of resident values."""
        epoch, index = np.divmod(np.asarray(tickets), len(self))
        labels = {"labels": torch.from_numpy(self.labels[index])}
        view = epoch % len(self.values)
        if self.resident is not None:
            return labels | {"rows": torch.from_numpy(view * len(self) + index)}
        return labels | {"stored": torch.from_numpy(np.asarray(self.values[view, index]))}

    def model_inputs(
        self, batch: dict[str, torch.Tensor], device: torch.device
    ) -> dict[str, torch.Tensor]:
        """Return {hidden: [B, ...] as the block takes it, labels} on `device`."""
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        stored = batch["stored"] if self.resident is None else self.resident[batch["rows"]]
        return {"hidden": self.lower.unpack(stored), "labels": batch["labels"]}


def _on_device(values: np.ndarray, device: torch.device) -> torch.Tensor | None:
    """Return [views * n, ...] on a CUDA device where it is small beside the free memory: gathering
    on the host would feed a GPU a few thousand images a second.
    """
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    if values.nbytes > RESIDENT_SHARE * free:
        return None
    rows = values.reshape(-1, *values.shape[2:])
    dtype = torch.from_numpy(np.array(rows[:0])).dtype
    resident = torch.empty(rows.shape, dtype=dtype, device=device)
    for first in range(0, len(rows), ROWS_AT_ONCE):  # the host may have no room for all of them
        part = slice(first, first + ROWS_AT_ONCE)
        resident[part] = torch.from_numpy(np.array(rows[part])).to(device)
    return resident


def hidden_state_batches(
    lower: FrozenLowerBlocks,
    sets: dict[str, tuple[ImageBatches, int]],
    cache: Path,
    *,
    batch_size: int,
    workers: int,
    weights: str,
    quiet: bool,
) -> tuple[dict[str, HiddenStateBatches], list[Cost | None]]:
    """Return the hidden states of each set, {name: (images, number of views)}, and what each set
    cost to compute, also where it came from the cache (None: not known).

    They are computed once, written to files below `cache` as they come, and memory-mapped.

    Raises CannotCache where they would take more than DISK_SHARE of the free disk, or can't be
    written.
    """
    extra = {
        "block": lower.name,
        "shape": lower.shape,
        "order": lower.order,
        "dtype": str(lower.dtype),
    }
    paths = {
        name: entry_path(
            cache,
            weights,
            batches,
            views,
            bf16=lower.autocast is not None,
            device=lower.device,
            extra=extra,
        )
        for name, (batches, views) in sets.items()
    }
    values: dict[str, np.ndarray] = {}
    for name, (batches, views) in sets.items():
        cached = load_entry(paths[name], (views, len(batches), *lower.shape))
        if all_processes(cached is not None):
            values[name] = cast(np.ndarray, cached)
            log.info("hidden states: %s: %d x %d images from the cache", name, views, len(batches))
    missing = {name: pair for name, pair in sets.items() if name not in values}
    images = sum(views * len(batches) for batches, views in missing.values())
    size = images * lower.bytes_per_image
    (cache / "features").mkdir(parents=True, exist_ok=True)
    if not all_processes(size <= DISK_SHARE * shutil.disk_usage(cache).free):
        raise CannotCache(
            f"hidden states would take {size / 1e9:.1f} GB, more than half of the free disk"
        )
    if images:
        log.info(
            "hidden states: computing those of %d images before %s, %.2f GB",
            images,
            lower.name,
            size / 1e9,
        )
    lower.model.eval()
    with image_progress("hidden states", images, not quiet) as bar:
        for name, (batches, views) in missing.items():
            values[name] = _compute(lower, batches, views, paths[name], batch_size, workers, bar)
    batches_of = {
        name: HiddenStateBatches(values[name], batches.labels, lower)
        for name, (batches, _) in sets.items()
    }
    return batches_of, [read_cost(path) for path in paths.values()]


def _compute(
    lower: FrozenLowerBlocks,
    batches: ImageBatches,
    views: int,
    path: Path,
    batch_size: int,
    workers: int,
    progress: Any,
) -> np.ndarray:
    """Compute the hidden states of one set into the cache entry `path` and return them mapped."""
    start, shape = time.perf_counter(), (views, len(batches), *lower.shape)
    values = run_over_images(
        batches,
        views,
        batch_size,
        lambda pixels: lower.in_memory_order(lower.compute(pixels)),
        torch.empty(0, *lower.shape, dtype=lower.dtype, device=lower.device),
        workers,
        progress,
    )
    error = _write(values, path, shape, lower.dtype) if is_local_writer() else None
    for _ in values:  # the other processes wait for this one's share in any case
        pass
    if not all_processes(error is None):
        raise CannotCache(f"hidden states can't be written ({error or 'in another process'})")
    if is_local_writer():
        write_cost(path, Cost.since(start))
    entry = load_entry(path, shape)
    if not all_processes(entry is not None):
        raise CannotCache("the hidden states that were written can't be read")
    return cast(np.ndarray, entry)


def _write(
    values: Iterator[torch.Tensor], path: Path, shape: tuple[int, ...], dtype: torch.dtype
) -> OSError | None:
    """Write the batches, which come in the file's order, and return the error that stopped it."""
    try:
        with entry_writer(path, shape, STORED[dtype]) as write:
            for batch in values:
                stored = batch.view(torch.int16) if dtype is torch.bfloat16 else batch
                write(stored.contiguous().numpy().data)
    except OSError as error:
        return error
    return None
