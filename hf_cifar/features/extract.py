"""What a frozen backbone gives its head for each image, computed once and cached."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import gather
from torch import nn

from hf_cifar.data.batches import ImageBatches, whole_batch
from hf_cifar.distributed import all_processes, is_local_writer, world_size
from hf_cifar.features.store import (
    Cost,
    entry_path,
    entry_writer,
    load_entry,
    read_cost,
    write_cost,
)
from hf_cifar.models.structure import head

log = logging.getLogger(__name__)
# Most images of a batch on a CPU. EfficientNet-Lite0 at 224 px took 1.7 GB and gave 55 images/s in
# batches of 32, and 4.1 GB and 29 images/s in batches of 128 (float32, one core).
CPU_BATCH = 32


@dataclass(frozen=True)
class Features:
    """values: float32 [views, n, D]. cost: what it cost to compute them, also where they came from
    the cache; None where that is not known.
    """

    values: np.ndarray
    cost: Cost | None


def run_over_images(
    batches: ImageBatches,
    views: int,
    batch_size: int,
    run: Callable[[torch.Tensor], torch.Tensor],
    like: torch.Tensor,
    workers: int = 0,
    progress: Any = None,
) -> Iterator[torch.Tensor]:
    """Yield what `run` gives for the pixel values [B, 3, S, S] of each batch of each view, on the
    host and in order.

    Of P processes each runs every Pth batch, and all of them get the values of every batch. The
    batches are those of one process alone, so the values are the same to the bit. View v has the
    augmentation of epoch v, where `batches` augment.

    batch_size: most images of a batch; a CPU gets CPU_BATCH at most. like: [0, ...] of the shape
    and dtype that `run` gives, on its device. workers: as in DataLoader. progress: a bar, updated
    by images.
    """
    processes = world_size()
    if like.device.type == "cpu":
        batch_size = min(batch_size, CPU_BATCH)
    process = torch.distributed.get_rank() if processes > 1 else 0
    n, device = len(batches), like.device
    jobs = [
        range(view * n + first, view * n + min(first + batch_size, n))
        for view in range(views)
        for first in range(0, n, batch_size)
    ]
    loader: Any = torch.utils.data.DataLoader(
        cast(Any, batches),
        batch_sampler=[list(tickets) for tickets in jobs[process::processes]],
        collate_fn=whole_batch,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # its draw would move the run's own generator
    )
    loaded = iter(loader)

    def start(first: int) -> tuple[torch.Tensor, list[int], Any]:
        """Queue one job a process from job `first` on, and the copy of their values to the host.

        Returns the values, the rows of each job, and a CUDA event for the end of the copy.
        """
        rows = [len(tickets) for tickets in jobs[first : first + processes]]
        values = like.new_zeros(batch_size, *like.shape[1:])
        if process < len(rows):
            inputs = batches.model_inputs(next(loaded), device)
            values[: rows[process]] = run(inputs["pixel_values"])
        if processes > 1:  # as bytes, which every backend can gather
            values = gather(values.view(torch.uint8)).view(like.dtype)
        if device.type != "cuda":
            return values.cpu(), rows, None
        values, copied = values.to("cpu", non_blocking=True), torch.cuda.Event()
        copied.record()
        return values, rows, copied

    def finish(values: torch.Tensor, rows: list[int], copied: Any) -> Iterator[torch.Tensor]:
        if copied is not None:
            copied.synchronize()
        if progress is not None:
            progress.update(sum(rows))
        for job, count in enumerate(rows):
            yield values[job * batch_size : job * batch_size + count]

    queued = start(0)
    for first in range(processes, len(jobs), processes):
        ahead = start(first)  # a GPU works on the next batch while the host takes this one
        yield from finish(*queued)
        queued = ahead
    yield from finish(*queued)


@torch.inference_mode()
def compute_features(
    model: nn.Module,
    batches: ImageBatches,
    cache: Path,
    *,
    views: int,
    bf16: bool,
    batch_size: int,
    weights: str,
    workers: int = 0,
    progress: Any = None,
) -> Features:
    """Return what the head of `model` is given for each image of `batches`, in their order.

    The model must be on its device; it is put into eval mode. Where `batches` augment, view v has
    the augmentation of epoch v. Each process computes its share, once; later calls map the values
    from `cache`. Every process must call this.

    weights: the model's `store.weights_fingerprint`. batch_size, workers, progress: as in
    `run_over_images`.
    """
    _, linear = head(model)
    device = next(model.parameters()).device
    path = entry_path(cache, weights, batches, views, bf16=bf16, device=device)
    head_inputs: list[torch.Tensor] = []

    def run(pixels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            model(pixel_values=pixels)
        return head_inputs.pop().float()

    def compute() -> Iterator[torch.Tensor]:
        model.eval()
        hook = linear.register_forward_pre_hook(lambda _, args: head_inputs.append(args[0]))
        like = torch.empty(0, linear.in_features, device=device)
        try:
            yield from run_over_images(batches, views, batch_size, run, like, workers, progress)
        finally:
            hook.remove()

    shape = views, len(batches), linear.in_features
    return cached_or_computed(path, shape, compute, f"features: {views} x {len(batches)} images")


def cached_or_computed(
    path: Path, shape: tuple[int, ...], compute: Callable[[], Iterator[torch.Tensor]], title: str
) -> Features:
    """Return the float32 values of a cache entry, computed and kept where it is not there.

    compute: yields rows of the values, float32 [B, D] on the host, in order. title: what log lines
    call them. Every process must call this.
    """
    cached = load_entry(path, shape)
    if all_processes(cached is not None):
        log.info("%s from the cache", title)
        return Features(cast(np.ndarray, cached), read_cost(path))
    start = time.perf_counter()
    values = np.empty(shape, np.float32)
    flat, filled = values.reshape(-1, shape[-1]), 0
    for rows in compute():
        flat[filled : filled + len(rows)] = rows.numpy()
        filled += len(rows)
    cost = Cost.since(start)
    if is_local_writer():
        try:
            with entry_writer(path, values.shape, values.dtype) as write:
                write(values.data)
            write_cost(path, cost)
        except OSError as error:
            log.warning("%s not cached: %s", title, error)
    return Features(values, cost)
