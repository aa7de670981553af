"""Several labels a picture, or none: each label is a question of its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from scipy.special import expit
from torch.nn import functional as F
from transformers import EvalPrediction

from hf_cifar.data.label_sets import SEPARATOR, split_sets
from hf_cifar.data.load import load_data
from hf_cifar.data.splits import Split
from hf_cifar.errors import UserError
from hf_cifar.evaluation.multi_label_metrics import multi_label_metrics
from hf_cifar.models.config import MULTI_LABEL, write_pixel_range
from hf_cifar.models.load import Backbone, load_backbone
from hf_cifar.objectives.base import Datasets, Objective, ReadyModel
from hf_cifar.objectives.image_datasets import FLIPPED, decoding_workers, image_datasets
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.reporting.check_report import check_report
from hf_cifar.reporting.multi_label_predictions import write_label_set_predictions
from hf_cifar.reporting.ranking_plots import write_ranking_curves
from hf_cifar.reporting.training_plots import write_learning_curves

log = logging.getLogger(__name__)
FLIP_METRICS = ("accuracy", "accuracy_ci95", "map")
# Keys that have no meaning here, with the value that leaves them out.
REFUSED = {
    "temperature_scaling": (False, "fits one temperature for classes that exclude each other"),
    "monitor_features": (False, "compares pictures by the one class that each has"),
}


class MultiLabel(Objective):
    """Any number of labels for each picture, by the binary cross-entropy of each label.

    The data's classes are sets of labels, such as `cat|dog` (see `data.label_sets`); the model's
    are the labels. Its config says so with `problem_type`, and `pipeline` then gives each label a
    probability of its own.
    """

    checkpoint_metrics: ClassVar[Mapping[str, bool]] = {
        "accuracy": True,
        "map": True,
        "f1_macro": True,
        "f1_micro": True,
        "loss": False,
    }
    refused: ClassVar[Mapping[str, tuple[Any, str]]] = REFUSED

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.data = data = load_data(recipe)
        self.label_names, self.members = split_sets(data.label_names)  # bool [sets, labels]
        for message in data.messages:
            log.info("%s", message)
        self._check_labels()
        self.smoothing = recipe.training["label_smoothing_factor"]
        self.targets = torch.from_numpy(self.members).float()  # [sets, labels]
        self.labels: dict[str, np.ndarray] = {}  # bool [n, labels] of each evaluation dataset
        self.probabilities: dict[str, np.ndarray] = {}

    def _check_labels(self) -> None:
        """Raise UserError for labels that can't be learned, or that exclude each other."""
        source, splits = self.data.source, (self.data.train, self.data.validation, self.data.test)
        present = [split for split in splits if split is not None]
        if not self.label_names:
            raise UserError(f"{source}: no picture has a label; fill some in")
        if all((self._targets_of(split).sum(1) == 1).all() for split in present):
            raise UserError(
                f"{source}: every picture has exactly one label, so the labels exclude each other;"
                f" set `objective: classification`, or write several labels as"
                f" `cat{SEPARATOR}dog`, and none as `{SEPARATOR}`"
            )
        for split in present:
            lacking = [
                name
                for name, count in zip(
                    self.label_names, self._targets_of(split).sum(0), strict=True
                )
                if count == 0
            ]
            if lacking and split is self.data.train:
                raise UserError(
                    f"{source}: no training picture has the label {', '.join(lacking[:5])}; add"
                    " some, or remove the label"
                )
            if lacking:
                log.warning(
                    "%s, split %s: no picture has the label %s, so that it is not scored there",
                    source,
                    split.name,
                    ", ".join(lacking[:5]),
                )

    def _targets_of(self, split: Split) -> np.ndarray:
        """Return bool [n, labels] of a split."""
        return self.members[split.labels]

    def load_backbone(self) -> Backbone:
        backbone = load_backbone(self.recipe, self.label_names)
        backbone.model.config.problem_type = MULTI_LABEL
        write_pixel_range(backbone.model.config, self.data.pixel_range)
        return backbone

    @property
    def workers(self) -> int:
        return decoding_workers(self.data)

    def datasets(self, ready: ReadyModel) -> Datasets:
        datasets = image_datasets(self.recipe, self.data, ready)
        self.labels = {
            name: self.members[cast(Any, dataset.labels)]
            for name, dataset in datasets.evaluation.items()
        }
        return datasets

    def loss(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the binary cross-entropy in float32, a mean over the labels of each picture.

        labels: int64 [B], the set of each picture, or float32 [B, sets], the shares of mixed ones.
        """
        logits = outputs["logits"].float()
        if self.targets.device != logits.device:
            self.targets = self.targets.to(logits.device)
        mixed = labels.is_floating_point()
        targets = labels @ self.targets if mixed else self.targets[labels]
        if torch.is_grad_enabled() and self.smoothing:
            targets = targets * (1 - self.smoothing) + self.smoothing / 2
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(-1).sum()
        return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        logits = np.asarray(prediction.predictions, np.float64)
        targets = self.members[np.asarray(prediction.label_ids)]
        scores = multi_label_metrics(expit(logits), targets, self.label_names, prefix="")
        names = ("accuracy", "map", "f1_macro", "f1_micro")
        return {name: scores.get(f"_{name}", 0.0) for name in names}

    def score(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        probabilities = {
            name: expit(np.asarray(logits, np.float64)) for name, logits in outputs.items()
        }
        metrics: dict[str, Any] = {}
        flipped = probabilities.pop(FLIPPED, None)
        if flipped is not None:
            mean = (probabilities["test"] + flipped) / 2
            scores = multi_label_metrics(
                mean, self.labels["test"], self.label_names, prefix="test_flip"
            )
            metrics |= {f"test_flip_{n}": scores.get(f"test_flip_{n}") for n in FLIP_METRICS}
        for name, values in probabilities.items():
            scores = multi_label_metrics(values, self.labels[name], self.label_names, prefix=name)
            metrics |= scores if name != "train" else {"train_accuracy": scores["train_accuracy"]}
        if "validation_accuracy" in metrics:
            gap = metrics["train_accuracy"] - metrics["validation_accuracy"]
            metrics["train_validation_gap"] = gap
        self.probabilities = probabilities
        return metrics

    def facts(self) -> dict[str, Any]:
        labels = {"problem_type": MULTI_LABEL, "labels": self.label_names}
        return labels | self.data.facts()

    def check_report(self) -> None:
        check_report(self.label_names)

    def report(self, folder: Path, metrics: dict[str, Any]) -> None:
        """Write predictions.parquet, the learning curves and the ranking curves."""
        if "test" in self.probabilities:
            truth, probabilities = self.labels["test"], self.probabilities["test"]
            write_label_set_predictions(folder, truth, probabilities, self.label_names)
            write_ranking_curves(folder, truth, probabilities, self.label_names)
        accuracies = {
            "eval_accuracy": "all labels right",
            "eval_map": "mean average precision",
        }
        write_learning_curves(folder, metrics, accuracies)
