"""Distillation: a classifier learns from labels and from the answers of a trained one."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from hf_cifar.data.batches import BatchDataset
from hf_cifar.errors import UserError
from hf_cifar.evaluation.classifier import Classifier, load_classifier
from hf_cifar.evaluation.label_names import map_labels
from hf_cifar.features.frozen_backbone import freeze
from hf_cifar.models.load import Backbone
from hf_cifar.models.structure import head
from hf_cifar.objectives.base import Datasets
from hf_cifar.objectives.classification import Classification
from hf_cifar.recipe.recipe import Recipe, public_name


class Distillation(Classification):
    """Classification whose loss has a second term: the student's answers should be the teacher's
    (Hinton et al. 2015).

    The teacher sees each training image once, without augmentation, and its features are cached, so
    that it costs one pass and a resumed run learns from the same answers.
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

    def datasets(
        self,
        backbone: Backbone,
        model: Any,
        device: torch.device,
        *,
        channels_last: bool,
        views: int | None,
    ) -> Datasets:
        datasets = super().datasets(
            backbone, model, device, channels_last=channels_last, views=views
        )
        return Datasets(TaughtBatches(datasets.train, self._answers()), datasets.evaluation)

    def _answers(self) -> np.ndarray:
        """Return float32 [n, C], the teacher's logits for the training images, in the order of the
        data's classes. Raises UserError for a teacher with other classes.
        """
        assert self.recipe.teacher is not None
        teacher = load_classifier(self.recipe.teacher)
        columns = self._columns(teacher)
        frozen = freeze(teacher.model, teacher.transforms)
        features = torch.from_numpy(np.array(frozen.features(self.data.train)))
        _, linear = head(teacher.model)
        with torch.inference_mode():
            logits = linear.float().cpu()(features).numpy()
        return logits[:, columns]

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
        }
        return super().facts() | {"teacher": teacher}


class TaughtBatches:
    """Batches with the teacher's logits, float32 [n, C], beside the labels."""

    def __init__(self, batches: BatchDataset, answers: np.ndarray) -> None:
        self.batches, self.answers = batches, answers

    @property
    def labels(self) -> np.ndarray | None:
        """int64 [n]."""
        return self.batches.labels

    def __len__(self) -> int:
        return len(self.batches)

    def __getitems__(self, tickets: list[int]) -> dict[str, Any]:
        """Return the batch, with `teacher`, float32 [B, C]."""
        index = np.asarray(tickets, dtype=np.int64) % len(self)
        answers = torch.from_numpy(self.answers[index])
        return self.batches.__getitems__(tickets) | {"teacher": answers}

    def model_inputs(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """Return the model's arguments; labels are float32 [B, 1 + C], label and logits."""
        answers = batch["teacher"].to(device, non_blocking=True)
        rest = {name: value for name, value in batch.items() if name != "teacher"}
        inputs = self.batches.model_inputs(rest, device)
        labels = torch.cat([inputs["labels"][:, None].float(), answers], dim=1)
        return inputs | {"labels": labels}
