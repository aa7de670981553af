"""Semi-supervised classification: few images with labels, and many without."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch.nn import functional as F

from hf_cifar.augmentation.transforms import make_transforms
from hf_cifar.data.batches import BatchDataset, ImageBatches, resident_pixels
from hf_cifar.data.duplicates import in_both
from hf_cifar.data.load import load_data
from hf_cifar.data.splits import Data, Split
from hf_cifar.errors import UserError
from hf_cifar.objectives.base import Datasets, ReadyModel
from hf_cifar.objectives.classification import Classification
from hf_cifar.objectives.image_datasets import decoding_workers, image_datasets
from hf_cifar.recipe.fields import DataKeys
from hf_cifar.recipe.recipe import Recipe

log = logging.getLogger(__name__)
# Each use of the seed has its own stream, so that an unlabelled image never shares the draws of a
# labelled one with the same number, nor a strong view those of a weak one.
ORDER, WEAK, STRONG = range(1, 4)
STRONG_POLICY = "randaugment"  # as in FixMatch's main experiments
MEASURED = 2_000  # most unlabelled images that are answered at the end, to count confident answers
UNLABELLED = "unlabelled"  # the evaluation dataset of those
# Keys that have no meaning here, with the value that leaves them out.
REFUSED = {
    "mixup_alpha": (0.0, "mixes images, of which one has a label and its views have none"),
    "cutmix_alpha": (0.0, "mixes images, of which one has a label and its views have none"),
    "image_size_schedule": (None, "goes by epochs, and images without labels have others"),
}
# Keys about the recipe's data that go for images without labels from elsewhere, too.
FOR_ALL_DATA = ("on_bad_image", "deep_pixels", "data_path")


class SemiSupervised(Classification):
    """FixMatch (Sohn et al. 2020): where the model is confident about a weakly augmented image, its
    answer is the target for a strongly augmented view of the same image.

    The weak view has the recipe's crop and mirroring, as labelled images have. The strong view has
    its own crop and mirroring, `auto_augment` (RandAugment, if the recipe names none) and
    `random_erasing`. The model sees labelled images, weak and strong views in one pass, so that
    batch norms use the statistics of all of them.
    """

    methods: ClassVar[tuple[str, ...]] = ("full", "lora")
    refused: ClassVar[Mapping[str, tuple[Any, str]]] = REFUSED

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.ratio, self.weight = recipe.unlabelled_ratio, recipe.unlabelled_weight
        self.threshold = recipe.unlabelled_threshold
        unlabelled = self._load_unlabelled()
        self.unlabelled_source = unlabelled.source
        self.has_truth = unlabelled.label_names == self.label_names
        self.in_test = 0  # unlabelled images that test has too
        self.unlabelled = self._without_test_images(unlabelled)
        count = len(self.unlabelled)
        evenly = np.linspace(0, count - 1, min(count, MEASURED)).astype(np.int64)
        self.measured = Split(
            UNLABELLED,
            self.unlabelled.images,
            self.unlabelled.rows[evenly],
            self.unlabelled.labels[evenly],
        )
        log.info(
            "%s images with labels, and %s of %s without",
            f"{len(self.data.train):,}",
            f"{count:,}",
            self.unlabelled_source,
        )

    @property
    def _shares_dataset(self) -> bool:
        """Whether the images without labels are those of the recipe's own train split."""
        names = self.recipe.unlabelled_dataset, self.recipe.dataset_name
        if names[0] is None or names[0] == names[1]:
            return True
        paths = [Path(str(name)).expanduser() for name in names]
        return all(path.exists() for path in paths) and paths[0].samefile(paths[1])

    def _load_unlabelled(self) -> Data:
        """Return the data whose train split trains without labels: all of it, without the images
        that were cut from train as validation or test.
        """
        changes: dict[str, Any] = {"train_samples_per_class": None, "max_train_samples": None}
        if not self._shares_dataset:
            changes = {n: v for n, v in vars(DataKeys()).items() if n not in FOR_ALL_DATA}
            changes |= {"validation_fraction": 0.0, "test_fraction": 0.0}
            changes |= {"dataset_name": self.recipe.unlabelled_dataset}
        recipe = dataclasses.replace(self.recipe, **changes)
        try:
            return load_data(recipe, needs_labels=False, pixel_range=self.data.pixel_range)
        except UserError as error:
            raise UserError(f"unlabelled_dataset: {error}") from None

    def _without_test_images(self, unlabelled: Data) -> Split:
        """Return the images without labels. With `drop_test_duplicates`, those that test has too
        are left out; without it, a warning says how many there are.
        """
        split, test = unlabelled.train, self.data.test
        if split.images.fingerprint == self.data.train.images.fingerprint:
            split = dataclasses.replace(split, images=self.data.train.images)  # read it once
        if self._shares_dataset or test is None:  # loading the data has compared train and test
            return split
        in_test, _ = in_both(split, test)
        count = int(in_test.sum())
        if count == 0:
            return split
        message = (
            f"unlabelled_dataset: {count:,} of the {len(split):,} images are in test too, exactly"
            " by their pixels"
        )
        if not self.recipe.drop_test_duplicates:
            self.in_test = count
            log.warning("%s; drop_test_duplicates: true takes them out of training", message)
            return split
        if count == len(split):
            raise UserError(f"{message}; name other images")
        log.info("%s; they were taken out of training", message)
        return dataclasses.replace(split, rows=split.rows[~in_test], labels=split.labels[~in_test])

    @property
    def workers(self) -> int:
        return decoding_workers(self.data) or decoding_workers(
            dataclasses.replace(self.data, train=self.unlabelled)
        )

    def datasets(self, ready: ReadyModel) -> Datasets:
        weak = dataclasses.replace(self.recipe, auto_augment=None, random_erasing=0.0)
        policy: Any = self.recipe.auto_augment or STRONG_POLICY
        strong = dataclasses.replace(self.recipe, auto_augment=policy)
        datasets = image_datasets(weak, self.data, ready)
        self.labels = {name: cast(Any, d.labels) for name, d in datasets.evaluation.items()}
        labelled = cast(ImageBatches, datasets.train)
        resident = labelled.resident
        if self.unlabelled.images is not self.data.train.images:
            resident = resident_pixels(self.unlabelled.images, ready.device, self.recipe.data_path)

        def view(recipe: Recipe, stream: int) -> ImageBatches:
            training = recipe.training | {"seed": stream_seed(recipe.seed, stream)}
            return ImageBatches(
                self.unlabelled,
                make_transforms(dataclasses.replace(recipe, training=training), ready.backbone),
                training=True,
                resident=resident,
                channels_last=ready.channels_last,
                fuse=labelled.fused is not None,
            )

        train = SemiSupervisedBatches(
            labelled, view(weak, WEAK), view(strong, STRONG), self.ratio, self.recipe.seed
        )
        # Their own labels may be of other classes, and none are needed to count answers.
        no_labels = np.zeros(len(self.measured), dtype=np.int64)
        measured = ImageBatches(
            dataclasses.replace(self.measured, labels=no_labels),
            labelled.transforms,
            training=False,
            resident=resident,
            channels_last=ready.channels_last,
        )
        return Datasets(train, datasets.evaluation | {UNLABELLED: measured})

    def loss(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the cross-entropy of labelled images + `unlabelled_weight` * that of strong views,
        the mean over all unlabelled images of the step, where those with a weak view that the model
        is not confident about count as 0. Evaluation images have the cross-entropy alone.

        labels: int64 [B]. The logits are [B, C], or in training [B + 2 x ratio x B, C]: those of
        the labelled images, of all weak views and of all strong views. num_items_in_batch counts
        labelled images.
        """
        logits = outputs["logits"].float()
        if len(logits) == len(labels):
            return super().loss(outputs, labels, num_items_in_batch)
        of_labels = super().loss({"logits": logits[: len(labels)]}, labels, num_items_in_batch)
        weak, strong = logits[len(labels) :].chunk(2)
        confidence, targets = weak.detach().softmax(1).max(1)
        losses = F.cross_entropy(strong, targets, reduction="none")
        count = len(labels) if num_items_in_batch is None else num_items_in_batch
        of_views = (losses * (confidence >= self.threshold)).sum() / (count * self.ratio)
        return of_labels + self.weight * of_views

    def score(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the metrics of classification, and the share of unlabelled images that the trained
        model is confident about; where their truth is known, also the share of right answers to
        those.
        """
        scored = {name: logits for name, logits in outputs.items() if name != UNLABELLED}
        metrics = super().score(scored)
        logits = torch.from_numpy(outputs[UNLABELLED]).double()
        confidence, answers = logits.softmax(1).max(1)
        confident = (confidence >= self.threshold).numpy()
        metrics["unlabelled_confident_share"] = float(confident.mean())
        if self.has_truth and confident.any():
            right = answers.numpy() == self.measured.labels
            metrics["unlabelled_confident_accuracy"] = float(right[confident].mean())
        return metrics

    def facts(self) -> dict[str, Any]:
        unlabelled = {
            "dataset": self.unlabelled_source,
            "images": len(self.unlabelled),
            "images_in_test": self.in_test,
            "ratio": self.ratio,
            "threshold": self.threshold,
            "weight": self.weight,
        }
        return super().facts() | {"unlabelled": unlabelled}


class SemiSupervisedBatches:
    """Batches of labelled images, each with weak and strong views of `ratio` unlabelled images.

    The unlabelled images are taken from seeded permutations of all of them, one after the other.
    Ticket k of the labelled images has the places k * ratio to k * ratio + ratio - 1 there, so that
    the pairing depends neither on the batch nor on the process, nor on a resume.

    labelled, weak, strong: datasets of images; the last two of the same unlabelled ones.
    """

    def __init__(
        self,
        labelled: BatchDataset,
        weak: BatchDataset,
        strong: BatchDataset,
        ratio: int,
        seed: int,
    ) -> None:
        self.labelled, self.weak, self.strong = labelled, weak, strong
        self.ratio, self.seed = ratio, seed

    @property
    def labels(self) -> np.ndarray | None:
        """int64 [n], of the labelled images."""
        return self.labelled.labels

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitems__(self, tickets: list[int]) -> dict[str, Any]:
        """Return the batch of labelled images, with `weak` and `strong`, batches of the unlabelled
        ones.
        """
        first = np.asarray(tickets, dtype=np.int64)[:, None] * self.ratio
        places = (first + np.arange(self.ratio)).ravel()
        unlabelled = self.unlabelled_tickets(places)
        return self.labelled.__getitems__(tickets) | {
            "weak": self.weak.__getitems__(unlabelled),
            "strong": self.strong.__getitems__(unlabelled),
        }

    def unlabelled_tickets(self, places: np.ndarray) -> list[int]:
        """Return for places (int64 [k]) in the endless sequence the tickets of the unlabelled
        images there, with the number of the permutation as the epoch.
        """
        n = len(self.weak)
        passes, positions = np.divmod(places, n)
        images = np.empty_like(places)
        for number in np.unique(passes):
            here = passes == number
            images[here] = permutation(n, self.seed, int(number))[positions[here]]
        return (passes * n + images).tolist()

    def model_inputs(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """Return the model's arguments: pixel_values, float32 [B + 2 x ratio x B, 3, S, S], of the
        labelled images, of all weak views and of all strong views; labels, int64 [B].
        """
        labelled = {k: value for k, value in batch.items() if k not in ("weak", "strong")}
        inputs = self.labelled.model_inputs(labelled, device)
        views = [
            self.weak.model_inputs(batch["weak"], device),
            self.strong.model_inputs(batch["strong"], device),
        ]
        pixels = torch.cat([part["pixel_values"] for part in (inputs, *views)])
        return inputs | {"pixel_values": pixels}


@functools.lru_cache(maxsize=64)  # an epoch of the labelled images may go through several
def permutation(n: int, seed: int, number: int) -> np.ndarray:
    """Return int64 [n], the permutation with this number."""
    key = np.random.SeedSequence(seed, spawn_key=(ORDER, number))
    return np.random.Generator(np.random.Philox(key)).permutation(n)


def stream_seed(seed: int, stream: int) -> int:
    """Return the seed that a stream of random numbers draws from in place of the run's."""
    return int(np.random.SeedSequence(seed, spawn_key=(stream,)).generate_state(1)[0])
