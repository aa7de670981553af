"""Several tasks at once: one backbone answers several questions about a picture."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch.nn import functional as F
from transformers import EvalPrediction

from hf_cifar.data.asked_labels import AskedLabels
from hf_cifar.data.load import check_classes, load_data
from hf_cifar.data.splits import Data, Split
from hf_cifar.errors import UserError
from hf_cifar.evaluation.metrics import classification_metrics, trainer_metrics
from hf_cifar.models.config import write_pixel_range
from hf_cifar.models.load import Backbone, load_backbone
from hf_cifar.models.task_heads import (
    drop_uncertainty,
    joint_labels,
    learn_uncertainty,
    task_columns,
    write_tasks,
)
from hf_cifar.objectives.base import Datasets, Objective, ReadyModel
from hf_cifar.objectives.image_datasets import decoding_workers, image_datasets
from hf_cifar.objectives.joint_batches import (
    NO_LABEL,
    TURNS,
    JointBatches,
    LabelledBatches,
    TurnedBatches,
)
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.recipe.tasks import Task, read_tasks
from hf_cifar.reporting.check_report import check_report
from hf_cifar.reporting.task_folders import TaskResult, write_task_folders
from hf_cifar.reporting.training_plots import write_learning_curves

log = logging.getLogger(__name__)
# Keys that have no meaning here, with the value that leaves them out.
REFUSED = {
    "mixup_alpha": (0.0, "mixes images, which may be of different tasks"),
    "cutmix_alpha": (0.0, "mixes images, which may be of different tasks"),
    "temperature_scaling": (False, "fits one temperature for one task"),
    "monitor_features": (False, "watches the classes of one task"),
    "tta": ("none", "averages the answers of one task"),
    "exclude": (None, "is an audit of the classes of one task"),
}


@dataclass
class ImageSet:
    """Images that some tasks share: they are decoded, and go through the model, once for all.

    tasks: numbers of the tasks. labels: of each split, int64 [n, T], NO_LABEL for other tasks.
    """

    data: Data
    tasks: list[int]
    labels: dict[str, np.ndarray]


class MultiTask(Objective):
    """One class of each task for each image, by the sum of the tasks' cross-entropies.

    The head is one linear layer over the classes of all tasks. A batch holds images of all data
    sets in proportion to their sizes, each with labels for the tasks of its data set.
    """

    checkpoint_metrics: ClassVar[Mapping[str, bool]] = {
        "accuracy": True,
        "nll": False,
        "loss": False,
    }
    refused: ClassVar[Mapping[str, tuple[Any, str]]] = REFUSED

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.tasks = read_tasks(recipe)
        self.smoothing = recipe.training["label_smoothing_factor"]
        self.learns_weights = recipe.task_weighting == "learned"
        self.labels_of: dict[str, list[str]] = {}  # in the order of the tasks
        self.image_sets: list[ImageSet] = []
        self._load_images()
        self.data_of = {n: s.data for s in self.image_sets for n in s.tasks}  # by a task's number
        self.columns = list(task_columns(self.labels_of).values())
        self.labels: dict[str, np.ndarray] = {}  # of the evaluation datasets
        self.results: list[TaskResult] = []

    def _load_images(self) -> None:
        """Load the images of all tasks, those that several tasks share once."""
        sharing: dict[tuple[Any, ...], list[int]] = {}
        for number, task in enumerate(self.tasks):
            sharing.setdefault(task.images, []).append(number)
        names: dict[int, list[str]] = {}
        for numbers in sharing.values():
            first = self.tasks[numbers[0]]
            cut_by = first.recipe.split_column_name or first.recipe.label_column_name
            shared = dataclasses.replace(
                first.recipe, label_map=None, label_column_name=cut_by, split_column_name=None
            )
            data = load_data(shared, needs_labels=not first.orientation)
            for message in data.messages:
                log.info("%s", message)
            image_set = ImageSet(data, numbers, {})
            for split in _splits(data):
                shape = len(split), len(self.tasks)
                image_set.labels[split.name] = np.full(shape, NO_LABEL, dtype=np.int64)
            for number in numbers:
                names[number] = self._read_labels(image_set, number)
            self.image_sets.append(image_set)
        if self.recipe.validation_fraction and not any(s.data.validation for s in self.image_sets):
            raise UserError(
                "validation_fraction: no task has validation images, so nothing chooses the"
                " checkpoint; set it to 0 for the recipe too"
            )
        ranges = {repr(s.data.pixel_range) for s in self.image_sets if s.data.pixel_range}
        if len(ranges) > 1:
            raise UserError(
                "deep_pixels: the tasks' pictures have different ranges, and a model takes one; set"
                " deep_pixels: rescale"
            )
        self.labels_of = {task.name: names[number] for number, task in enumerate(self.tasks)}

    def _read_labels(self, image_set: ImageSet, number: int) -> list[str]:
        """Put the labels of a task into an image set, and return the names of its classes."""
        task, data = self.tasks[number], image_set.data
        if task.orientation:
            return list(TURNS)  # the labels are drawn with the turns
        asked, labelled = AskedLabels(task.recipe), []
        try:
            for split in _splits(data):
                part = "train" if split.images is data.train.images else split.name
                labelled.append(asked.of(split, part))
                image_set.labels[split.name][:, number] = labelled[-1].labels
            messages = check_classes(data.source, labelled)
        except UserError as error:
            raise UserError(f"task {task.name}: {error}") from None
        for message in messages:
            log.info("task %s: %s", task.name, message)
        return labelled[0].images.label_names

    def load_backbone(self) -> Backbone:
        backbone = load_backbone(self.recipe, joint_labels(self.labels_of))
        config = backbone.model.config
        write_tasks(config, self.labels_of)
        for image_set in self.image_sets:
            write_pixel_range(config, image_set.data.pixel_range)
        if self.learns_weights:
            learn_uncertainty(backbone.model, len(self.tasks))
        return backbone

    @property
    def workers(self) -> int:
        return max(decoding_workers(image_set.data) for image_set in self.image_sets)

    def datasets(self, ready: ReadyModel) -> Datasets:
        train: list[LabelledBatches] = []
        evaluation: dict[str, list[LabelledBatches]] = {}
        for image_set in self.image_sets:
            datasets = image_datasets(
                self.recipe, image_set.data, ready, fuse=len(self.image_sets) == 1
            )
            train.append(self._labelled(image_set, "train", datasets.train))
            for name, batches in datasets.evaluation.items():
                part = self._labelled(image_set, name, batches)
                evaluation.setdefault(name, []).append(part)
        joint = {
            name: JointBatches(parts, channels_last=ready.channels_last)
            for name, parts in evaluation.items()
        }
        self.labels = {name: batches.labels for name, batches in joint.items()}
        return Datasets(
            JointBatches(train, channels_last=ready.channels_last), cast(dict[str, Any], joint)
        )

    def _labelled(self, image_set: ImageSet, split: str, batches: Any) -> LabelledBatches:
        first = image_set.tasks[0]
        if self.tasks[first].orientation:
            return TurnedBatches(batches, self.recipe.seed, first, len(self.tasks))
        return LabelledBatches(batches, image_set.labels[split][: len(batches)])

    def loss(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the sum over the tasks of weight times cross-entropy in float32, over the images
        that have a label for the task, divided by the number of images.

        With `task_weighting: learned`, an image's cross-entropy c becomes exp(-s) c + s / 2, where
        s is the logarithm of the task's variance (Kendall et al. 2018, equation 10).

        labels: int64 [B, T]. The logits are [B, C], or [B, C + T] with s of each task.
        """
        logits = outputs["logits"].float()
        total = logits.new_zeros(())
        for number, (task, columns) in enumerate(zip(self.tasks, self.columns, strict=True)):
            entropy = F.cross_entropy(
                logits[:, columns],
                labels[:, number],
                reduction="sum",
                ignore_index=NO_LABEL,
                label_smoothing=self.smoothing if torch.is_grad_enabled() else 0.0,
            )
            if self.learns_weights:
                log_variance = logits[0, self.columns[-1].stop + number]
                images = (labels[:, number] != NO_LABEL).sum()
                entropy = (-log_variance).exp() * entropy + images * log_variance / 2
            total = total + task.weight * entropy
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return accuracy and nll, means over the tasks, and the accuracy of each task."""
        outputs = prediction.predictions
        logits = np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs)
        scores: dict[str, dict[str, float]] = {}
        for task, rows, columns, labels in self._answers(np.asarray(prediction.label_ids)):
            answered = EvalPrediction(predictions=logits[rows, columns], label_ids=labels)
            scores[task.name] = trainer_metrics(answered)
        means = {name: _mean(s[name] for s in scores.values()) for name in ("accuracy", "nll")}
        return means | {f"accuracy_{task}": s["accuracy"] for task, s in scores.items()}

    def _answers(self, labels: np.ndarray) -> Iterable[tuple[Task, np.ndarray, slice, np.ndarray]]:
        """Yield each task that some images have a label for: the task, the rows of those images,
        int64 [n], the columns of its logits, and the labels, int64 [n].

        labels: int64 [B, T].
        """
        for number, (task, columns) in enumerate(zip(self.tasks, self.columns, strict=True)):
            rows = np.flatnonzero(labels[:, number] != NO_LABEL)
            if len(rows):
                yield task, rows, columns, labels[rows, number]

    def score(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the mean accuracy over the tasks, that of each task, and under `tasks` all else of
        each.
        """
        scores: dict[str, dict[str, Any]] = {}
        for number, task in enumerate(self.tasks):
            data = self.data_of[number]
            scores[task.name] = {
                "labels": self.labels_of[task.name],
                "weight": task.weight,
                "dataset": data.source,
                "dataset_license": data.license,
                "dataset_fingerprint": data.fingerprint,
                "train_samples": len(data.train),
            }
        metrics: dict[str, Any] = {}
        of_test: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name, logits in outputs.items():
            accuracies = {}
            for task, rows, columns, labels in self._answers(self.labels[name]):
                values = torch.from_numpy(logits[rows, columns]).double().softmax(-1).numpy()
                known = classification_metrics(values, labels, self.labels_of[task.name], name)
                accuracies[task.name] = known[f"{name}_accuracy"]
                if name == "train":
                    known = {"train_accuracy": known["train_accuracy"]}
                if name == "test":
                    of_test[task.name] = labels, values
                scores[task.name] |= known
            metrics[f"{name}_accuracy"] = _mean(accuracies.values())
            metrics |= {f"{name}_accuracy_{task}": value for task, value in accuracies.items()}
            metrics[f"{name}_samples"] = len(logits)
            if self.learns_weights:
                log_variances = logits[0, self.columns[-1].stop :].astype(np.float64)
                for of_task, log_variance in zip(scores.values(), log_variances, strict=True):
                    of_task["learned_weight"] = float(np.exp(-log_variance))
        for of_task in scores.values():
            if "validation_accuracy" in of_task:
                gap = of_task["train_accuracy"] - of_task["validation_accuracy"]
                of_task["train_validation_gap"] = gap
        self.results = [
            self._result(number, scores[task.name], *of_test.get(task.name, (None, None)))
            for number, task in enumerate(self.tasks)
        ]
        return metrics | {"tasks": scores}

    def _result(
        self,
        number: int,
        scores: dict[str, Any],
        labels: np.ndarray | None,
        probabilities: np.ndarray | None,
    ) -> TaskResult:
        """Return what the folder of a task is written from.

        labels, probabilities: int64 [n] and float64 [n, C] of the test images, if there are any.
        """
        task, split = self.tasks[number], self.data_of[number].test
        recipe = self.recipe if task.orientation else task.classification_recipe()

        def pictures(rows: Sequence[int]) -> list[np.ndarray]:
            assert split is not None and labels is not None
            shown = [split.images.picture(int(split.rows[row])) for row in rows]
            if not task.orientation:
                return shown
            return [np.rot90(p, labels[row]) for p, row in zip(shown, rows, strict=True)]

        return TaskResult(task.name, recipe, scores, labels, probabilities, pictures)

    def finish_model(self, model: Any) -> Any:
        """Return the model with the plain head that other programs know."""
        drop_uncertainty(model)
        return model

    def facts(self) -> dict[str, Any]:
        sets = [image_set.data for image_set in self.image_sets]
        return {
            "labels": joint_labels(self.labels_of),
            "task_weighting": self.recipe.task_weighting,
            "train_samples": sum(len(data.train) for data in sets),
            "data_runtime": sum(data.seconds for data in sets),
            "data_runtime_from_nothing": sum(data.build_seconds for data in sets),
            "deep_pixels": next((d.pixel_range.to_config() for d in sets if d.pixel_range), None),
        }

    def check_report(self) -> None:
        for labels in self.labels_of.values():
            check_report(labels)

    def report(self, folder: Path, metrics: dict[str, Any]) -> None:
        """Write tasks/NAME/ of each task, and the learning curves."""
        write_task_folders(folder, metrics, self.results)
        curves = {"eval_accuracy": "mean over the tasks"}
        if len(self.tasks) == 2:
            curves = {f"eval_accuracy_{task.name}": task.name for task in self.tasks}
        write_learning_curves(folder, metrics, curves)


def _splits(data: Data) -> list[Split]:
    return [split for split in (data.train, data.validation, data.test) if split is not None]


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
