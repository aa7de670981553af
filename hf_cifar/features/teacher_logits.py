"""A trained model's answers to the training images as a student sees them in each epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch

from hf_cifar.data.batches import ImageBatches
from hf_cifar.data.image_cache import cache_folder
from hf_cifar.distributed import is_local_writer
from hf_cifar.features.extract import cached_or_computed, run_over_images
from hf_cifar.features.frozen_backbone import FrozenBackbone
from hf_cifar.features.store import entry_path
from hf_cifar.models.structure import head
from hf_cifar.training.progress import image_progress


class _Epoch:
    """Augmented batches whose tickets 0 to n - 1 stand for those of one epoch."""

    def __init__(self, batches: ImageBatches, epoch: int) -> None:
        self.batches, self.first = batches, epoch * len(batches)
        self.model_inputs = batches.model_inputs

    def __len__(self) -> int:
        return len(self.batches)

    def __getitems__(self, tickets: list[int]) -> dict[str, Any]:
        return self.batches.__getitems__([self.first + ticket for ticket in tickets])


@torch.inference_mode()
def epoch_logits(
    teacher: FrozenBackbone, batches: ImageBatches, epoch: int, workers: int = 0
) -> np.ndarray:
    """Return float32 [n, C], the teacher's logits for the view of each image in an epoch.

    They are computed once and mapped from the cache later. An epoch is an entry of its own, so that
    a run that was stopped goes on with the next, and a longer run computes only what it adds.
    Every process must call this.

    batches: augmented, with the teacher's transforms. workers: processes that decode.
    """
    _, linear = head(teacher.model)
    digest = hashlib.sha256()
    for parameter in linear.parameters():
        digest.update(parameter.float().cpu().numpy().tobytes())
    path = entry_path(
        cache_folder(),
        teacher.weights,
        batches,
        1,
        bf16=teacher.bf16,
        device=teacher.device,
        extra={"epoch": epoch, "head": digest.hexdigest()},
    )

    def run(pixels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(teacher.device.type, torch.bfloat16, enabled=teacher.bf16):
            return teacher.model(pixel_values=pixels).logits.float()

    def compute() -> Iterator[torch.Tensor]:
        seen = cast(ImageBatches, _Epoch(batches, epoch))
        like = torch.empty(0, linear.out_features, device=teacher.device)
        with image_progress(f"teacher, epoch {epoch}", len(batches), is_local_writer()) as bar:
            yield from run_over_images(seen, 1, teacher.batch_size, run, like, workers, bar)

    shape = len(batches), linear.out_features
    return cached_or_computed(path, shape, compute, f"teacher: answers of epoch {epoch}").values
