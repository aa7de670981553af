"""The datasets of a run whose inputs are single images: train, and what is scored."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch

from hf_cifar.augmentation.transforms import make_transforms
from hf_cifar.data.batches import BatchDataset, ImageBatches, resident_pixels
from hf_cifar.data.load import Data
from hf_cifar.data.splits import Split
from hf_cifar.distributed import cores_for_each_process, world_size
from hf_cifar.models.image_size import check_schedule
from hf_cifar.objectives.base import Datasets, ReadyModel
from hf_cifar.recipe.recipe import Recipe

log = logging.getLogger(__name__)
MOST_WORKERS = 8
CLEAN_TRAIN_SAMPLES = (
    2000  # most images of train that are scored, to tell learning from overfitting
)
# Compiling the augmentation takes ten seconds or so, and saves a GPU about a millisecond a batch.
FUSE_FROM_BATCHES = 5_000
FLIPPED = "test_flipped"  # the evaluation dataset of mirrored test images


def decoding_workers(data: Data) -> int:
    """Return how many worker processes decode the images: none where they lie in a table."""
    if data.train.images.size is not None:
        return 0
    workers = min(MOST_WORKERS, cores_for_each_process())
    log.info("images of many sizes: decoded by %d workers", workers)
    return workers


def image_datasets(recipe: Recipe, data: Data, ready: ReadyModel, *, fuse: bool = True) -> Datasets:
    """Return the datasets of a run: train, augmented unless it has one view; and, to be scored,
    clean images of train (`train`), `validation`, `test` and its mirror images (`test_flipped`).

    fuse: whether a long run compiles what training does to a batch, once for each number of images.
    Raises UserError for sides in `image_size_schedule`
    that the model can't take.
    """
    backbone, device, views = ready.backbone, ready.device, ready.views
    transforms = make_transforms(recipe, backbone)
    if device.type == "cuda":
        transforms.check_device(device)
    resident: dict[int, torch.Tensor | None] = {}  # splits that were cut from one table share it
    resized_inputs: dict[str, Any] = {}
    if recipe.image_size_schedule:
        sides = [side for _, side in recipe.image_size_schedule]
        resized_inputs = check_schedule(ready.model, sides, backbone.image_size)

    def batches(split: Split, training: bool = False, mirrored: bool = False) -> ImageBatches:
        key = id(split.images)
        if key not in resident:
            resident[key] = resident_pixels(split.images, device, recipe.data_path)
        return ImageBatches(
            split,
            transforms,
            training=training,
            resident=resident[key],
            channels_last=ready.channels_last,
            mirrored=mirrored,
            views=views if split is data.train else None,
            resized_inputs=resized_inputs if training else {},
            fuse=fuse and training and _fusing_pays(recipe, device, len(split)),
        )

    evaluation: dict[str, BatchDataset] = {}
    if data.validation is not None:
        # Scoring must cost little beside training; a tenth of train tells as much as validation.
        first = slice(min(CLEAN_TRAIN_SAMPLES, len(data.train) // 10 + 1))
        rows, labels = data.train.rows[first], data.train.labels[first]
        evaluation["train"] = batches(dataclasses.replace(data.train, rows=rows, labels=labels))
    for split in (data.validation, data.test):
        if split is not None:
            evaluation[split.name] = batches(split)
    if recipe.tta == "flip" and data.test is not None:
        evaluation[FLIPPED] = batches(data.test, mirrored=True)
    return Datasets(batches(data.train, training=views != 1), evaluation)


def _fusing_pays(recipe: Recipe, device: torch.device, images: int) -> bool:
    """Return whether to compile what training does to a batch: on a GPU, in a long run.

    Not under `full_determinism`: a run that is resumed where there is no compiler would differ.
    """
    training = recipe.training
    if device.type != "cuda" or training.get("full_determinism"):
        return False
    batches = training["num_train_epochs"] * images / training["per_device_train_batch_size"]
    if training["max_steps"] > 0:
        batches = training["max_steps"] * training["gradient_accumulation_steps"]
    return batches / world_size() >= FUSE_FROM_BATCHES
