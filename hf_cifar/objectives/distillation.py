"""Distillation: a classifier learns from labels and from the answers of a trained one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from hf_cifar.augmentation.transforms import Transforms, make_transforms
from hf_cifar.data.batches import BatchDataset, ImageBatches
from hf_cifar.distributed import world_size
from hf_cifar.errors import UserError
from hf_cifar.evaluation.classifier import Classifier, load_classifier
from hf_cifar.evaluation.label_names import map_labels
from hf_cifar.features.frozen_backbone import FrozenBackbone, freeze
from hf_cifar.features.teacher_logits import epoch_logits
from hf_cifar.models.load import Backbone
from hf_cifar.models.structure import head
from hf_cifar.objectives.base import Datasets, ReadyModel
from hf_cifar.objectives.classification import Classification
from hf_cifar.recipe.recipe import Recipe, public_name


class Distillation(Classification):
    """Classification whose loss has a second term: the student's answers should be the teacher's
    (Hinton et al. 2015).

    The teacher sees each training image once without augmentation (`teacher_views: plain`), or in
    each epoch with the crop, mirroring and policy that the student sees (`each_epoch`, the
    consistent teaching of Beyer et al. 2022). What it answers is cached before training begins, so
    that it costs one pass over each view, and a resumed run learns from the same answers.
    """

    methods: ClassVar[tuple[str, ...]] = ("full", "lora")

    def __init__(self, recipe: Recipe) -> None:
        if recipe.teacher is None:
            raise UserError("objective: distillation needs `teacher`; name a run folder or a model")
        for name in ("mixup_alpha", "cutmix_alpha"):
            if getattr(recipe, name):
                raise UserError(
                    f"{name}: mixes images that the teacher has seen whole; leave it out with"
                    " `objective: distillation`"
                )
        super().__init__(recipe)
        self.weight, self.softness = recipe.teacher_weight, recipe.distillation_temperature

    def datasets(self, ready: ReadyModel) -> Datasets:
        datasets = super().datasets(ready)
        answers = self._answers(ready.backbone)
        return Datasets(TaughtBatches(datasets.train, answers), datasets.evaluation)

    def _answers(self, backbone: Backbone) -> list[np.ndarray]:
        """Return the teacher's logits for the training images, float32 [n, C], in the order of the
        data's classes: one array for each epoch, or one for all.

        backbone: the student's. Raises UserError for a teacher with other classes.
        """
        assert self.recipe.teacher is not None
        teacher = load_classifier(self.recipe.teacher)
        columns = self._columns(teacher)
        frozen = freeze(teacher.model, teacher.transforms)
        if self.recipe.teacher_views == "plain":
            return [self._plain_logits(frozen)[:, columns]]
        transforms = self._teacher_transforms(backbone, teacher.transforms)
        batches = ImageBatches(
            self.data.train, transforms, training=True, channels_last=frozen.channels_last
        )
        epochs = epochs_of(self.recipe, len(self.data.train))
        return [
            epoch_logits(frozen, batches, epoch, self.workers)[:, columns]
            for epoch in range(epochs)
        ]

    def _plain_logits(self, frozen: FrozenBackbone) -> np.ndarray:
        features = torch.from_numpy(np.array(frozen.features(self.data.train)))
        _, linear = head(frozen.model)
        with torch.inference_mode():
            return linear.float().cpu()(features).numpy()

    def _teacher_transforms(self, backbone: Backbone, plain: Transforms) -> Transforms:
        """Return the student's augmentation at the teacher's size, with the teacher's processor."""
        recipe = dataclasses.replace(self.recipe, image_size_schedule=None)
        seen_by_teacher = dataclasses.replace(
            backbone, processor=plain.processor, image_size=plain.image_size
        )
        return make_transforms(recipe, seen_by_teacher)

    def _columns(self, teacher: Classifier) -> np.ndarray:
        """Return for each class of the data its place among the teacher's."""
        problem = (
            f"teacher: {teacher.files.name} knows other classes"
            f" ({', '.join(teacher.labels[:3])}, ...) than the data; name one trained on these"
        )
        if len(teacher.labels) != len(self.label_names):
            raise UserError(problem)
        try:
            return np.argsort(map_labels(teacher.labels, self.label_names))
        except UserError:
            raise UserError(problem) from None

    def loss(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return (1 - weight) * cross-entropy + weight * T^2 * divergence from the teacher at
        temperature T; of evaluation images, without a teacher, the cross-entropy.

        labels: int64 [B], or float32 [B, 1 + C] with the teacher's logits after the label.
        """
        if labels.ndim == 1:
            return super().loss(outputs, labels, num_items_in_batch)
        of_labels = super().loss(outputs, labels[:, 0].long(), num_items_in_batch)
        student = (outputs["logits"].float() / self.softness).log_softmax(1)
        teacher = (labels[:, 1:] / self.softness).log_softmax(1)
        divergence = F.kl_div(student, teacher, reduction="sum", log_target=True)
        count = len(labels) if num_items_in_batch is None else num_items_in_batch
        of_teacher = self.softness**2 * divergence / count
        return (1 - self.weight) * of_labels + self.weight * of_teacher

    def facts(self) -> dict[str, Any]:
        assert self.recipe.teacher is not None
        teacher = {
            "name": public_name(self.recipe.teacher),
            "weight": self.weight,
            "temperature": self.softness,
            "views": self.recipe.teacher_views,
        }
        return super().facts() | {"teacher": teacher}


def epochs_of(recipe: Recipe, images: int) -> int:
    """Return how many epochs a run over so many training images begins."""
    training = recipe.training
    if training["max_steps"] <= 0:
        return math.ceil(training["num_train_epochs"])
    update = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"]
    steps = images / (update * world_size())  # of an epoch
    steps = math.floor(steps) if training["dataloader_drop_last"] else math.ceil(steps)
    return math.ceil(training["max_steps"] / max(steps, 1))


class TaughtBatches:
    """Batches with the teacher's logits beside the labels.

    answers: float32 [n, C] for each epoch, or one array for all epochs.
    """

    def __init__(self, batches: BatchDataset, answers: Sequence[np.ndarray]) -> None:
        self.batches, self.answers = batches, answers

    @property
    def labels(self) -> np.ndarray | None:
        """int64 [n]."""
        return self.batches.labels

    def __len__(self) -> int:
        return len(self.batches)

    def __getitems__(self, tickets: list[int]) -> dict[str, Any]:
        """Return the batch, with `teacher`, float32 [B, C]."""
        epochs, index = np.divmod(np.asarray(tickets, dtype=np.int64), len(self))
        epochs %= len(self.answers)
        answers = np.stack(
            [self.answers[epoch][row] for epoch, row in zip(epochs, index, strict=True)]
        )
        return self.batches.__getitems__(tickets) | {"teacher": torch.from_numpy(answers)}

    def model_inputs(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """Return the model's arguments; labels are float32 [B, 1 + C], label and logits."""
        answers = batch["teacher"].to(device, non_blocking=True)
        rest = {name: value for name, value in batch.items() if name != "teacher"}
        inputs = self.batches.model_inputs(rest, device)
        labels = torch.cat([inputs["labels"][:, None].float(), answers], dim=1)
        return inputs | {"labels": labels}
