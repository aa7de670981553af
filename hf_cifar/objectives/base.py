"""An objective: what a run learns. It owns the datasets, the loss and the metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import EvalPrediction, PreTrainedModel, TrainerCallback

from hf_cifar.data.batches import BatchDataset
from hf_cifar.errors import UserError
from hf_cifar.models.load import Backbone, skeleton
from hf_cifar.recipe.recipe import Recipe


@dataclass(frozen=True)
class Datasets:
    """What a run trains on, and what it scores, by name; `validation` chooses the checkpoint."""

    train: BatchDataset
    evaluation: dict[str, BatchDataset]


@dataclass(frozen=True)
class ReadyModel:
    """A model on its device, ready to train, and how it takes images.

    backbone: what the model was made of, with its image processor. model: what the method prepared.
    channels_last: memory layout of images. views: see `Method.views`.
    """

    backbone: Backbone
    model: Any
    device: torch.device
    channels_last: bool = False
    views: int | None = None


class Objective(ABC):
    """What a run learns.

    checkpoint_metrics: metrics that can choose a checkpoint -> whether more of them is better.
    methods: the methods that can train it. refused: keys that have no meaning for it -> the value
    that leaves the key out, and what the key does.
    """

    checkpoint_metrics: ClassVar[Mapping[str, bool]]
    methods: ClassVar[tuple[str, ...]] = ("full", "partial", "lora")
    refused: ClassVar[Mapping[str, tuple[Any, str]]] = {}

    def __init__(self, recipe: Recipe) -> None:
        """Load the data. Raises UserError for keys and data that the objective can't use."""
        for name, (without, why) in self.refused.items():
            if getattr(recipe, name) != without:
                raise UserError(f"{name}: {why}; leave it out with `objective: {recipe.objective}`")
        self.recipe = recipe

    @abstractmethod
    def load_backbone(self) -> Backbone:
        """Return the pretrained model with the head that this objective needs, on the CPU."""

    @classmethod
    def skeleton(cls, recipe: Recipe) -> tuple[PreTrainedModel, int]:
        """Return the model of `load_backbone` on torch's meta device, made from its config alone,
        and its image side in pixels.
        """
        return skeleton(recipe)

    @abstractmethod
    def datasets(self, ready: ReadyModel) -> Datasets:
        """Return the datasets, with images made as the backbone takes them."""

    @property
    def workers(self) -> int:
        """How many data loader workers to use where the recipe leaves that open."""
        return 0

    @abstractmethod
    def loss(
        self, outputs: Any, labels: Any, num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss of a batch, as the Trainer's `compute_loss_func`.

        It is the sum over the items divided by `num_items_in_batch`, which counts those of all
        accumulated batches, or by their own number where that is None.

        outputs: the model's, with "logits". labels: those that the dataset's `model_inputs` gave.
        """

    @abstractmethod
    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return the metrics of an evaluation, as the Trainer's `compute_metrics`."""

    @abstractmethod
    def score(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return what metrics.json says about the quality of the trained model.

        outputs: what the model predicted for each evaluation dataset.
        """

    def callbacks(self) -> list[TrainerCallback]:
        """Return what watches the training by gradient descent, after `datasets` was called."""
        return []

    def finish_model(self, model: Any) -> Any:
        """Return the model that a run saves, made of the trained one: with a temperature that
        `score` fitted, for example. The trained model may be changed in place.
        """
        return model

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return what metrics.json says about the data."""

    def check_report(self) -> None:
        """Raise UserError for what would stop `report` after all the training."""

    def report(self, folder: Path, metrics: dict[str, Any]) -> None:
        """Write what people look at, such as predictions and plots, into the run's folder."""
