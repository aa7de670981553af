"""A frozen backbone sees each image once: its features, cached, and linear heads trained on them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import gather
from torch import nn

from hf_cifar.data.batches import ImageBatches, whole_batch
from hf_cifar.distributed import all_processes, is_local_writer, world_size
from hf_cifar.features.store import Entry, feature_key, load_entry
from hf_cifar.models.structure import head

log = logging.getLogger(__name__)


def run_over_images(
    batches: ImageBatches,
    views: int,
    batch_size: int,
    run: Callable[[torch.Tensor], torch.Tensor],
    like: torch.Tensor,
    workers: int = 0,
    progress: Any = None,
) -> Iterator[torch.Tensor]:
    """Values [B, ...] on the host for each batch of each view, in order: what `run` gives for its
    pixel values [B, 3, S, S].

    Of P processes each runs every Pth batch, and all of them get every batch's values. The batches
    are those of one process alone, so that the values are its values, to the bit. View v is epoch
    v's augmentation, where `batches` augment.

    like: [0, ...], of the shape and dtype that `run` gives, on the device that it runs on. workers:
    as in DataLoader.
    """
    processes = world_size()
    own = torch.distributed.get_rank() if processes > 1 else 0
    n, device = len(batches), like.device
    jobs = [
        range(v * n + i, v * n + min(i + batch_size, n))
        for v in range(views)
        for i in range(0, n, batch_size)
    ]
    mine = jobs[own::processes]
    loader: Any = torch.utils.data.DataLoader(
        batches,
        batch_sampler=[list(tickets) for tickets in mine],
        collate_fn=whole_batch,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # its draw would move the run's own generator
    )
    loaded = iter(loader)

    def start(first: int) -> tuple[torch.Tensor, list[int], Any]:
        """Queue the jobs from this one on, one a process, and the copy of what they give; an event
        says when it is there.
        """
        rows = [len(tickets) for tickets in jobs[first : first + processes]]
        values = like.new_zeros(batch_size, *like.shape[1:])
        if own < len(rows):
            values[: rows[own]] = run(batches.model_inputs(next(loaded), device)["pixel_values"])
        if processes > 1:  # as bytes, which every backend carries
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
        for turn, count in enumerate(rows):
            yield values[turn * batch_size : turn * batch_size + count]

    queued = start(0)
    for first in range(processes, len(jobs), processes):
        ahead = start(first)  # a GPU has the next batch to work on while the host takes this one
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
) -> np.ndarray:
    """float32 [views, n, D]: what the head of `model` is given for each image of `batches`, in its
    order.

    The model must be on its device and is put into eval mode. Where `batches` augment, view v is
    epoch v's augmentation. Computed once, each process its share, then memory-mapped from `cache`.
    Every process must call it.
    """
    path = cache / "features" / f"{feature_key(weights, batches, views, bf16)}.npy"
    _, linear = head(model)
    found = load_entry(path, (views, len(batches), linear.in_features))
    if all_processes(found is not None):
        log.info("features: %s x %d images from the cache", views, len(batches))
        return cast(np.ndarray, found)
    model.eval()
    device = next(model.parameters()).device
    features = np.empty((views, len(batches), linear.in_features), np.float32)
    caught: list[torch.Tensor] = []
    hook = linear.register_forward_pre_hook(lambda _, args: caught.append(args[0]))

    def run(pixels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            model(pixel_values=pixels)
        return caught.pop().float()

    flat, filled = features.reshape(-1, linear.in_features), 0
    like = torch.empty(0, linear.in_features, device=device)
    try:
        for values in run_over_images(batches, views, batch_size, run, like, workers, progress):
            flat[filled : filled + len(values)] = values.numpy()
            filled += len(values)
    finally:
        hook.remove()
    if is_local_writer():
        try:
            with contextlib.closing(Entry(path, features.shape, features.dtype)) as entry:
                entry.write(features.data)
                entry.publish()
        except OSError as error:
            log.warning("features: not cached: %s", error)
    return features
