"""Classification: one of the data set's classes for each image."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch.nn import functional as F
from transformers import EvalPrediction

from hf_cifar.data.class_weights import balanced_weights
from hf_cifar.data.load import check_classes, load_data
from hf_cifar.errors import UserError
from hf_cifar.evaluation.calibration import apply_temperature, fit_temperature
from hf_cifar.evaluation.metrics import classification_metrics, trainer_metrics
from hf_cifar.evaluation.operating_point import (
    OperatingPoint,
    choose_threshold,
    find_positive,
    operating_point_metrics,
)
from hf_cifar.evaluation.ranking_metrics import auroc, average_precision, balanced_accuracy
from hf_cifar.models.config import write_pixel_range
from hf_cifar.models.load import Backbone, load_backbone
from hf_cifar.models.structure import head
from hf_cifar.objectives.base import Datasets, Objective, ReadyModel
from hf_cifar.objectives.consistency import jensen_shannon
from hf_cifar.objectives.image_datasets import FLIPPED, decoding_workers, image_datasets
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.reporting.check_report import check_report
from hf_cifar.reporting.plots import write_plots
from hf_cifar.reporting.predictions import write_predictions
from hf_cifar.text import visible

log = logging.getLogger(__name__)
FLIP_METRICS = ("accuracy", "accuracy_ci95", "nll", "ece")


class Classification(Objective):
    """One class for each image, by cross-entropy, with labels that may be smoothed or mixed and
    classes that may be weighted, and if asked with answers that should be the same for several
    views of an image.
    """

    checkpoint_metrics: ClassVar[Mapping[str, bool]] = {
        "accuracy": True,
        "f1_macro": True,
        "balanced_accuracy": True,
        "auroc": True,
        "average_precision": True,
        "nll": False,
        "loss": False,
    }
    methods: ClassVar[tuple[str, ...]] = ("full", "partial", "lora", "linear")

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.data = load_data(recipe)
        data = self.data
        splits = [split for split in (data.train, data.validation, data.test) if split is not None]
        for message in (*data.messages, *check_classes(data.source, splits)):
            log.info("%s", message)
        self.label_names = data.label_names
        self.positive = self._find_positive()
        self.operating_point: OperatingPoint | None = None
        self._ranking_metric = self._find_ranking_metric()
        self.class_weights: torch.Tensor | None = None
        if recipe.class_weights == "balanced":
            weights = balanced_weights(data.train.labels, len(data.label_names))
            self.class_weights = torch.from_numpy(weights).float()
        self.smoothing = recipe.training["label_smoothing_factor"]
        self.temperature = 1.0
        self.labels: dict[str, np.ndarray] = {}
        self.probabilities: dict[str, np.ndarray] = {}

    def _find_positive(self) -> int:
        """Return the number of the positive class of a two-class task.

        Raises UserError where the task has more classes and a key needs two, or where validation
        can't choose a threshold.
        """
        recipe, names, validation = self.recipe, self.label_names, self.data.validation
        for key in ("target_specificity", "positive_class"):
            if getattr(recipe, key) is not None and len(names) != 2:
                raise UserError(
                    f"{key}: works only for two classes, and {self.data.source} has {len(names)};"
                    " leave it out"
                )
        positive = find_positive(names, recipe.positive_class)
        if recipe.target_specificity is not None and (
            validation is None or len(np.unique(validation.labels)) < 2
        ):
            raise UserError(
                "target_specificity: its threshold is chosen on validation, which needs images of"
                " both classes; raise validation_fraction"
            )
        if len(names) == 2 and recipe.positive_class is None:
            log.info("positive class: %s, the last one", visible(names[positive]))
        return positive

    def _find_ranking_metric(self) -> Callable[..., dict[str, Any]] | None:
        """Return the metric that chooses the checkpoint where the Trainer's usual ones don't.

        Raises UserError for one that validation has too few classes for.
        """
        name = self.recipe.training["metric_for_best_model"].removeprefix("eval_")
        if name == "balanced_accuracy":
            return balanced_accuracy
        if name not in ("auroc", "average_precision"):
            return None
        validation = self.data.validation
        if validation is not None and len(np.unique(validation.labels)) < len(self.label_names):
            raise UserError(
                f"metric_for_best_model: {name} needs images of every class in validation, which"
                f" has {len(np.unique(validation.labels))} of {len(self.label_names)}; raise"
                " validation_fraction, or choose another metric"
            )
        return partial(auroc if name == "auroc" else average_precision, positive=self.positive)

    def load_backbone(self) -> Backbone:
        backbone = load_backbone(self.recipe, self.label_names)
        write_pixel_range(backbone.model.config, self.data.pixel_range)
        return backbone

    @property
    def workers(self) -> int:
        return decoding_workers(self.data)

    def datasets(self, ready: ReadyModel) -> Datasets:
        datasets = image_datasets(self.recipe, self.data, ready)
        self.labels = {name: cast(Any, d.labels) for name, d in datasets.evaluation.items()}
        return datasets

    def loss(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the cross-entropy in float32; where a batch holds several views of each image, it
        is that of the first view, and `consistency_weight` times `jensen_shannon` is added.

        labels: int64 [B], or float32 [B, C], the shares of mixed images. The logits are [B, C], or
        [views x B, C]: the first view of all images, then the second, and so on.
        """
        logits = outputs["logits"].float()
        if len(logits) == len(labels):
            loss = self._cross_entropy(logits, labels)
        else:
            views = logits.unflatten(0, (-1, len(labels)))
            loss = self._cross_entropy(views[0], labels)
            loss = loss + self.recipe.consistency_weight * jensen_shannon(views)
        return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    def _cross_entropy(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the sum over the images; evaluation neither smooths nor weighs."""
        if not torch.is_grad_enabled():
            return F.cross_entropy(logits, labels, reduction="sum")
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(logits.device)
        return F.cross_entropy(
            logits,
            labels,
            weight=self.class_weights,
            reduction="sum",
            label_smoothing=self.smoothing,
        )

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        more = [] if self._ranking_metric is None else [self._ranking_metric]
        return trainer_metrics(prediction, more)

    def score(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        probabilities = {
            name: torch.from_numpy(logits).double().softmax(-1).numpy()
            for name, logits in outputs.items()
        }
        metrics: dict[str, Any] = {}
        if self.recipe.temperature_scaling:
            metrics |= self._calibrate(probabilities)
        flipped = probabilities.pop(FLIPPED, None)
        if flipped is not None:
            mean = (probabilities["test"] + flipped) / 2
            scores = self._metrics(mean, "test", prefix="test_flip")
            metrics |= {f"test_flip_{name}": scores[f"test_flip_{name}"] for name in FLIP_METRICS}
        for name, values in probabilities.items():
            scores = self._metrics(values, name)
            only_accuracy = {"train_accuracy": scores.get("train_accuracy")}
            metrics |= only_accuracy if name == "train" else scores
        if "validation_accuracy" in metrics:
            gap = metrics["train_accuracy"] - metrics["validation_accuracy"]
            metrics["train_validation_gap"] = gap
        if self.recipe.target_specificity is not None:
            metrics |= self._choose_operating_point(probabilities)
        self.probabilities = probabilities
        return metrics

    def _choose_operating_point(self, probabilities: dict[str, np.ndarray]) -> dict[str, Any]:
        """Choose the threshold on validation; return it, and what it gives there and on test."""
        target, positive = self.recipe.target_specificity, self.positive
        assert target is not None
        scores = probabilities["validation"][:, positive]
        threshold = choose_threshold(scores, self.labels["validation"] == positive, target)
        self.operating_point = OperatingPoint(self.label_names[positive], threshold, target)
        metrics: dict[str, Any] = {"operating_point": self.operating_point.to_config()}
        for name in ("validation", "test"):
            if name in probabilities:
                metrics |= operating_point_metrics(
                    probabilities[name], self.labels[name], positive, threshold, name
                )
        return metrics

    def _metrics(self, probabilities: np.ndarray, name: str, prefix: str = "") -> dict[str, Any]:
        labels = self.labels[name]
        return classification_metrics(
            probabilities,
            labels,
            self.label_names,
            prefix=prefix or name,
            positive=self.positive,
        )

    def _calibrate(self, probabilities: dict[str, np.ndarray]) -> dict[str, Any]:
        """Fit the temperature on validation and apply it in place; return it, and the calibration
        before it.
        """
        self.temperature = fit_temperature(probabilities["validation"], self.labels["validation"])
        metrics: dict[str, Any] = {"temperature": self.temperature}
        for name, values in probabilities.items():
            if name in ("validation", "test"):
                scores = self._metrics(values, name)
                for metric in ("nll", "ece"):
                    metrics[f"{name}_{metric}_before_temperature"] = scores[f"{name}_{metric}"]
            probabilities[name] = apply_temperature(values, self.temperature)
        return metrics

    @torch.no_grad()
    def finish_model(self, model: Any) -> Any:
        """Divide the head by the temperature, so that the saved model answers calibrated, and write
        into its config which class is positive, and from which probability on.
        """
        if self.recipe.positive_class is not None:
            model.config.positive_class = self.recipe.positive_class
        if self.operating_point is not None:
            model.config.operating_point = self.operating_point.to_config()
        _, linear = head(model)
        for parameter in linear.parameters():
            parameter.div_(self.temperature)
        return model

    def _positive_facts(self) -> dict[str, Any]:
        if len(self.label_names) != 2:
            return {}
        return {"positive_class": self.label_names[self.positive]}

    def facts(self) -> dict[str, Any]:
        labels = {"labels": self.label_names}
        return labels | self._positive_facts() | self.data.facts()

    def check_report(self) -> None:
        check_report(self.label_names)

    def report(self, folder: Path, metrics: dict[str, Any]) -> None:
        """Write predictions.parquet and plots/."""
        if "test" in self.probabilities:
            labels, probabilities = self.labels["test"], self.probabilities["test"]
            rows = np.arange(len(labels))
            write_predictions(folder, rows, labels, probabilities, self.label_names)
        write_plots(folder, metrics, self._test_pictures)

    def _test_pictures(self, rows: Any) -> list[np.ndarray]:
        """Return uint8 [H, W, 3] for rows of the test split."""
        split = self.data.test
        assert split is not None
        return [split.images.picture(int(split.rows[row])) for row in rows]
