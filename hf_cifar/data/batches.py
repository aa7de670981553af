"""Whole batches by index: what stands between the decoded images and the Trainer.

The sampler hands out tickets, epoch * n + index. A ticket says which image and which augmentation,
so the counter that the transforms draw from travels with the index through workers and processes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device

from hf_cifar.augmentation import mixing
from hf_cifar.augmentation.transforms import Transforms
from hf_cifar.data.image_store import ImageTable
from hf_cifar.data.splits import Split

log = logging.getLogger(__name__)
RESIDENT_SHARE = 0.05  # of the device's memory that the image table may take


class ImageBatches(torch.utils.data.Dataset):
    """A split as a dataset whose `__getitems__` returns a whole batch; `model_inputs` finishes it
    on the device.

    training: augment, drawing from each ticket's epoch and index; else every image is seen as
    `pipeline` sees it.
    resident: the split's table as a uint8 tensor on the device; batches then carry rows only.
    """

    def __init__(
        self,
        split: Split,
        transforms: Transforms,
        *,
        training: bool,
        resident: torch.Tensor | None = None,
    ) -> None:
        self.split, self.transforms, self.training, self.resident = (
            split,
            transforms,
            training,
            resident,
        )
        self.channels_last = False  # memory layout of what the model gets
        self.mirrored = False  # every image, for flip averaging
        self.views: int | None = None  # epoch e is augmented as epoch e modulo so many was
        self.mixes = training and bool(transforms.mixup or transforms.cutmix)
        self.at_another_size: dict[
            str, Any
        ] = {}  # what the model is told beside images that are not `image_size` wide

    @property
    def labels(self) -> np.ndarray:
        """int64 [n]"""
        return self.split.labels

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, tickets: list[int]) -> dict[str, Any]:
        """{labels, epoch, index: int64 [B]} and, one of: rows int64 [B] of the resident table;
        images uint8 [B, 3, H, W]; squares [B, 3, S, S], already augmented (float32) or shrunk
        (uint8) because sizes differ.

        In training with mixup or cutmix, everything but labels has the images that these are mixed
        with after the B, and there are partners, int64 [B], their labels, and mixing
        (`mixing.draw`); with `auto_augment` there is policy (`policies.draw`), with a size schedule
        size.
        """
        t = self.transforms
        epoch, index = np.divmod(np.asarray(tickets, dtype=np.int64), len(self))
        size = t.size_at(int(epoch[0])) if self.training else t.image_size
        epoch = epoch % self.views if self.views else epoch
        batch: dict[str, Any] = {"labels": torch.from_numpy(self.split.labels[index])}
        if self.training and t.schedule:
            batch["size"] = size
        if self.mixes:
            partners, drawn = mixing.draw(t.mixup, t.cutmix, t.seed, epoch, index, len(self), size)
            batch |= {"partners": torch.from_numpy(self.split.labels[partners]), "mixing": drawn}
            epoch, index = np.tile(epoch, 2), np.concatenate([index, partners])
        batch |= {"epoch": torch.from_numpy(epoch), "index": torch.from_numpy(index)}
        rows = self.split.rows[index]
        if isinstance(self.split.images, ImageTable):
            batch |= self._policy(batch, self.split.images.size)
            if self.resident is not None:
                return batch | {"rows": torch.from_numpy(rows)}
            return batch | {"images": self.split.images.batch(rows)}
        pictures = [self.split.images.read(int(row)) for row in rows]
        if len({p.shape for p in pictures}) == 1:
            return (
                batch | self._policy(batch, _size(pictures[0])) | {"images": torch.stack(pictures)}
            )
        if not self.training:
            return batch | {"squares": torch.stack([t.shrink(p) for p in pictures])}
        cropped = []
        for i, picture in enumerate(pictures):
            counter = batch["epoch"][i : i + 1], batch["index"][i : i + 1]
            rounds = t.draw_policy(*counter, _size(picture))
            cropped.append(t.augment(picture[None], *counter, rounds, size)[0])
        return batch | {"squares": torch.stack(cropped)}

    def _policy(self, batch: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
        """{policy: ...} for images of `size`, or nothing where there is none."""
        rounds = (
            self.transforms.draw_policy(batch["epoch"], batch["index"], size)
            if self.training
            else []
        )
        return {"policy": rounds} if rounds else {}

    def model_inputs(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """{pixel_values: float32 [B, 3, S, S], labels: int64 [B], or float32 [B, C] where images
        are mixed} on `device`, and `at_another_size`.
        """
        t = self.transforms
        batch = send_to_device(batch, device, non_blocking=True)
        labels, counter = batch["labels"], (batch["epoch"], batch["index"])
        if "squares" in batch:
            pixels = (
                t.finish(batch["squares"], *counter)
                if self.training
                else t.normalize(batch["squares"])
            )
        else:
            images = batch["images"] if self.resident is None else self.resident[batch["rows"]]
            if self.training:
                pixels = t.train(images, *counter, batch.get("policy"), batch.get("size"))
            else:
                pixels = t.evaluate(images)
        if self.mixes:
            pixels = mixing.mix(pixels, batch["mixing"])
            classes = len(self.split.images.label_names)
            labels = mixing.soft_targets(
                labels, batch["partners"], batch["mixing"]["share"], classes
            )
        if self.mirrored:
            pixels = pixels.flip(-1)
        if self.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        told = self.at_another_size if pixels.shape[-1] != t.image_size else {}
        return {"pixel_values": pixels, "labels": labels} | told


def _size(image: torch.Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def whole_batch(batch: Any) -> Any:
    """Collator for datasets that already return batches."""
    return batch


class TicketSampler(torch.utils.data.Sampler[int]):
    """A permutation of n images a pass, drawn from (seed, epoch), as tickets, cut to whole
    multiples of `update` where there is one. `epoch` is asked when a pass begins.
    """

    def __init__(self, n: int, seed: int, epoch: Callable[[], int], update: int = 1) -> None:
        self.n, self.seed, self.epoch = n, seed, epoch
        self.count = n - n % update or n

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch()
        order = np.random.Generator(np.random.Philox([self.seed, epoch])).permutation(self.n)
        return iter((epoch * self.n + order[: self.count]).tolist())


def resident_pixels(images: Any, device: torch.device, data_path: str) -> torch.Tensor | None:
    """The image table on the device, where it is small beside the device's memory or `data_path:
    device` asks for it.
    """
    if (
        not isinstance(images, ImageTable)
        or device.type != "cuda"
        or data_path not in ("auto", "device")
    ):
        if data_path == "device" and device.type != "cuda":
            log.info(
                "image table: data_path is device, and the device is this host (%s)", device.type
            )
        return None
    share = images.pixels.nbytes / torch.cuda.get_device_properties(device).total_memory
    if data_path == "auto" and share > RESIDENT_SHARE:
        log.info(
            "image table: %.1f %% of the device's memory; batches are copied from the host",
            100 * share,
        )
        return None
    log.info(
        "image table: %.0f MB on the device (%.2f %% of its memory)",
        images.pixels.nbytes / 1e6,
        100 * share,
    )
    return torch.from_numpy(np.array(images.pixels)).to(device)
