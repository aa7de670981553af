"""Whole batches by index: the step between the decoded images and the Trainer.

The sampler hands out tickets, epoch * n + index. A ticket says which image and which augmentation,
so the counter that the transforms draw from travels with the index through workers and processes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from accelerate.utils import send_to_device

from hf_cifar.augmentation import mixing
from hf_cifar.augmentation.fused import Fused
from hf_cifar.augmentation.transforms import Transforms
from hf_cifar.data.image_store import ImageStore
from hf_cifar.data.splits import Split

log = logging.getLogger(__name__)
# An image that is drawn again in an epoch is augmented as in another one: the k-th time as in epoch
# + k * AGAIN. No run has so many epochs, and a prime number goes through any number of views.
AGAIN = 1_000_003
RESIDENT_SHARE = 0.05  # most of the device's memory that an image table may take


class BatchDataset(Protocol):
    """A dataset of whole batches, as the trainer takes it.

    Workers call `__getitems__`; the training process calls `model_inputs` on its result.
    """

    @property
    def labels(self) -> np.ndarray | None:
        """int64 [n], or None where the objective needs no labels."""
        ...

    def __len__(self) -> int: ...

    def __getitems__(self, tickets: list[int]) -> dict[str, Any]:
        """Return the batch for B tickets (epoch * n + index), on the host."""
        ...

    def model_inputs(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """Return the model's arguments for what `__getitems__` gave, on `device`."""
        ...


class ImageBatches(torch.utils.data.Dataset):
    """A split as a dataset of whole batches, which are finished on the device.

    training: augment, drawing from each ticket's epoch and index; otherwise every image is seen as
        `pipeline` sees it.
    resident: the split's table as a uint8 tensor on the device; batches then carry rows only.
    channels_last: memory layout of the model's images.
    mirrored: mirror every image, for flip averaging.
    views: augment epoch e as epoch e modulo `views`; None: each epoch anew.
    resized_inputs: further arguments of the model for batches that are not `image_size` wide.
    fuse: compile what training does to a batch on the device.
    """

    def __init__(
        self,
        split: Split,
        transforms: Transforms,
        *,
        training: bool,
        resident: torch.Tensor | None = None,
        channels_last: bool = False,
        mirrored: bool = False,
        views: int | None = None,
        resized_inputs: dict[str, Any] | None = None,
        fuse: bool = False,
    ) -> None:
        self.split, self.transforms, self.training = split, transforms, training
        self.resident, self.channels_last, self.mirrored = resident, channels_last, mirrored
        self.views, self.resized_inputs = views, resized_inputs or {}
        self.mixes = training and bool(transforms.mixup or transforms.cutmix)
        self.fused = Fused(self._finish) if training and fuse else None

    @property
    def labels(self) -> np.ndarray:
        """int64 [n]."""
        return self.split.labels

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, tickets: list[int]) -> dict[str, Any]:
        """Return {labels, epoch, index: int64 [B]} and the images in one of three forms.

        rows, int64 [B]: rows of the resident table.
        images, uint8 [B, 3, H, W].
        squares, uint8 [B, 3, S, S]: images of several sizes, already augmented or resized; in
            training with several views of each image, [views x B, 3, S, S].

        In training with mixup or cutmix, all but labels also hold, after the B images, the B images
        that they are mixed with; partners, int64 [B], are the labels of those, and mixing is the
        result of `mixing.draw`. With `auto_augment` there is policy (`Transforms.draw_policy`), and
        with a schedule of image sizes there is size, in pixels.
        """
        transforms = self.transforms
        epoch, index = np.divmod(np.asarray(tickets, dtype=np.int64), len(self))
        size = transforms.image_size
        if self.training:
            size = transforms.size_at(int(epoch[0]) % AGAIN)
        epoch = epoch % self.views if self.views else epoch
        batch: dict[str, Any] = {"labels": torch.from_numpy(self.split.labels[index])}
        if self.training and transforms.schedule:
            batch["size"] = size
        if self.mixes:
            partners, drawn = mixing.draw(
                transforms.mixup,
                transforms.cutmix,
                transforms.seed,
                epoch,
                index,
                len(self),
                size,
            )
            batch |= {"partners": torch.from_numpy(self.split.labels[partners]), "mixing": drawn}
            epoch, index = np.tile(epoch, 2), np.concatenate([index, partners])
        batch |= {"epoch": torch.from_numpy(epoch), "index": torch.from_numpy(index)}
        store, rows = self.split.images, self.split.rows[index]
        if self.resident is not None:
            height, width = self.resident.shape[-2:]
            policy = self._policy(batch, (height, width), size)
            return batch | policy | {"rows": torch.from_numpy(rows)}
        images = store.batch(rows)
        if isinstance(images, torch.Tensor):
            height, width = images.shape[-2:]
            return batch | self._policy(batch, (height, width), size) | {"images": images}
        if not self.training:
            return batch | {"squares": torch.stack([transforms.shrink(image) for image in images])}
        squares = []
        for i, image in enumerate(images):
            counter = batch["epoch"][i : i + 1], batch["index"][i : i + 1]
            policy = transforms.draw_policy(*counter, (image.shape[-2], image.shape[-1]), size)
            views = transforms.augment(image[None], *counter, policy, size)
            squares.append(views.round_().to(torch.uint8))  # a quarter of the bytes to ship
        return batch | {"squares": torch.stack(squares, 1).flatten(0, 1)}

    def _policy(self, batch: dict[str, Any], shape: tuple[int, int], size: int) -> dict[str, Any]:
        """Return {policy: ...} for images of this shape, or nothing without `auto_augment`."""
        if not self.training:
            return {}
        counter, counted = (batch["epoch"], batch["index"]), self.fused is None
        policy = self.transforms.draw_policy(*counter, shape, size, counted=counted)
        return {"policy": policy} if policy else {}

    def model_inputs(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """Return the model's arguments, on `device`.

        pixel_values: float32 [B, 3, S, S], or [views x B, 3, S, S] in training with several views
        of each image (see `Transforms`). labels: int64 [B], or float32 [B, C], shares that sum to
        one, where images are mixed. `resized_inputs` come with images of another size.
        """
        batch = send_to_device(batch, device, non_blocking=True)
        size = batch.pop("size", None)
        if self.resident is not None:
            batch["resident"] = self.resident
        pixels, labels = (self.fused or self._finish)(batch, size)
        resized = pixels.shape[-1] != self.transforms.image_size
        return {"pixel_values": pixels, "labels": labels} | (self.resized_inputs if resized else {})

    def _finish(self, batch: dict[str, Any], size: int | None) -> tuple[torch.Tensor, ...]:
        """Return the model's images and labels for a batch on its device.

        size: side in px, where it is not `image_size`.
        """
        transforms, labels = self.transforms, batch["labels"]
        counter = batch["epoch"], batch["index"]
        if "squares" in batch:
            pixels = (
                transforms.finish(batch["squares"], *counter)
                if self.training
                else transforms.normalize(batch["squares"])
            )
        else:
            images = batch["resident"][batch["rows"]] if "rows" in batch else batch["images"]
            if self.training:
                pixels = transforms.train(images, *counter, batch.get("policy"), size)
            else:
                pixels = transforms.evaluate(images)
        if self.mixes:
            pixels = mixing.mix(pixels, batch["mixing"])
            classes = len(self.split.images.label_names)
            share = batch["mixing"]["share"]
            labels = mixing.soft_targets(labels, batch["partners"], share, classes)
        if self.mirrored:
            pixels = pixels.flip(-1)
        if self.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        return pixels, labels


def whole_batch(batch: Any) -> Any:
    """Return `batch`: the collator for datasets that already return batches."""
    return batch


class TicketSampler(torch.utils.data.Sampler[int]):
    """A permutation of n images in each pass, drawn from (seed, epoch), as tickets.

    epoch: called when a pass begins. update: images of one optimizer step; a pass is cut to whole
    multiples of it where there is at least one.
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


class BalancedSampler(TicketSampler):
    """As many images of each class in each pass, to within one, drawn from (seed, epoch), as
    tickets. A pass is as long as that of a `TicketSampler`.

    Each class goes through permutations of its images, one after the other and from pass to pass,
    so that all of them are drawn equally often. See AGAIN for those that a pass holds repeatedly.

    labels: int64 [n] of the images.
    """

    def __init__(
        self, labels: np.ndarray, seed: int, epoch: Callable[[], int], update: int = 1
    ) -> None:
        super().__init__(len(labels), seed, epoch, update)
        self.classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def __iter__(self) -> Iterator[int]:
        epoch, classes = self.epoch(), len(self.classes)
        share = -(-self.count // classes)
        tickets = np.stack([self._draw(number, epoch, share) for number in range(classes)])
        random = np.random.Generator(np.random.Philox([self.seed, epoch]))
        last_is_too_many = random.permutation(classes)[: classes * share - self.count]
        drawn = np.ones(tickets.shape, bool)
        drawn[last_is_too_many, -1] = False
        return iter(random.permutation(tickets[drawn]).tolist())

    def _draw(self, number: int, epoch: int, share: int) -> np.ndarray:
        """Return the tickets of one class in an epoch, int64 [share]."""
        images = self.classes[number]
        first = epoch * share // len(images)  # permutation that the epoch begins in
        last = ((epoch + 1) * share - 1) // len(images)
        orders = [
            (epoch + (turn - first) * AGAIN) * self.n
            + np.random.Generator(np.random.Philox([self.seed, number, turn])).permutation(images)
            for turn in range(first, last + 1)
        ]
        start = epoch * share - first * len(images)
        return np.concatenate(orders)[start : start + share]


def resident_pixels(
    images: ImageStore, device: torch.device, data_path: str
) -> torch.Tensor | None:
    """Return the image table on the device, uint8 [N, 3, H, W], or None where it stays on the host.

    It goes there if it takes at most `RESIDENT_SHARE` of a GPU's memory, or if `data_path` is
    device.
    """
    if images.pixels is None or device.type != "cuda" or data_path not in ("auto", "device"):
        if data_path == "device" and device.type != "cuda":
            log.info("image table: data_path is device, which here is the host (%s)", device.type)
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
