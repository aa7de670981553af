"""Whole batches by index: what stands between the decoded images and the Trainer.

The sampler hands out tickets, epoch * n + index. A ticket says which image and which augmentation, so the counter that the
transforms draw from travels with the index through workers and processes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from hf_cifar.data import Split
from hf_cifar.table import ImageTable
from hf_cifar.transforms import Transforms

log = logging.getLogger(__name__)
RESIDENT_SHARE = 0.05  # of the device's memory that the image table may take


class ImageBatches(torch.utils.data.Dataset):
    """A split as a dataset whose `__getitems__` returns a whole batch; `model_inputs` finishes it on the device.

    training: augment, drawing from each ticket's epoch and index; else every image is seen as `pipeline` sees it.
    resident: the split's table as a uint8 tensor on the device; batches then carry rows only.
    """

    def __init__(self, split: Split, transforms: Transforms, *, training: bool, resident: torch.Tensor | None = None) -> None:
        self.split, self.transforms, self.training, self.resident = split, transforms, training, resident
        self.channels_last = False  # memory layout of what the model gets

    @property
    def labels(self) -> np.ndarray:
        """int64 [n]"""
        return self.split.labels

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, tickets: list[int]) -> dict[str, torch.Tensor]:
        """{labels, epoch, index: int64 [B]} and, one of: rows int64 [B] of the resident table; images uint8 [B, 3, H, W];
        squares [B, 3, S, S], already augmented (float32) or shrunk (uint8) because sizes differ.
        """
        epoch, index = np.divmod(np.asarray(tickets, dtype=np.int64), len(self))
        batch = {
            name: torch.from_numpy(v) for name, v in (("labels", self.split.labels[index]), ("epoch", epoch), ("index", index))
        }
        rows = self.split.rows[index]
        if self.resident is not None:
            return batch | {"rows": torch.from_numpy(rows)}
        if isinstance(self.split.images, ImageTable):
            return batch | {"images": self.split.images.batch(rows)}
        pictures = [self.split.images.read(int(row)) for row in rows]
        if len({p.shape for p in pictures}) == 1:
            return batch | {"images": torch.stack(pictures)}
        if not self.training:
            return batch | {"squares": torch.stack([self.transforms.shrink(p) for p in pictures])}
        cropped = [
            self.transforms.augment(p[None], batch["epoch"][i : i + 1], batch["index"][i : i + 1])[0]
            for i, p in enumerate(pictures)
        ]
        return batch | {"squares": torch.stack(cropped)}

    def model_inputs(self, batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
        """{pixel_values: float32 [B, 3, S, S], labels: int64 [B]} on `device`."""
        batch = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
        if "squares" in batch:
            pixels = self.transforms.normalize(batch["squares"])
        else:
            images = batch["images"] if self.resident is None else self.resident[batch["rows"]]
            if self.training:
                pixels = self.transforms.train(images, batch["epoch"], batch["index"])
            else:
                pixels = self.transforms.evaluate(images)
        if self.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        return {"pixel_values": pixels, "labels": batch["labels"]}


def whole_batch(batch: Any) -> Any:
    """Collator for datasets that already return batches."""
    return batch


class TicketSampler(torch.utils.data.Sampler[int]):
    """A permutation of n images a pass, drawn from (seed, epoch), as tickets. `epoch` is asked when a pass begins."""

    def __init__(self, n: int, seed: int, epoch: Callable[[], int]) -> None:
        self.n, self.seed, self.epoch = n, seed, epoch

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch()
        order = np.random.Generator(np.random.Philox([self.seed, epoch])).permutation(self.n)
        return iter((epoch * self.n + order).tolist())


def resident_pixels(images: Any, device: torch.device, data_path: str) -> torch.Tensor | None:
    """The image table on the device, where it is small beside the device's memory or `data_path: device` asks for it."""
    if not isinstance(images, ImageTable) or device.type != "cuda" or data_path not in ("auto", "device"):
        return None
    share = images.pixels.nbytes / torch.cuda.get_device_properties(device).total_memory
    if data_path == "auto" and share > RESIDENT_SHARE:
        log.info("image table: %.1f %% of the device's memory; batches are copied from the host", 100 * share)
        return None
    log.info("image table: %.0f MB on the device (%.2f %% of its memory)", images.pixels.nbytes / 1e6, 100 * share)
    return torch.from_numpy(np.array(images.pixels)).to(device)
