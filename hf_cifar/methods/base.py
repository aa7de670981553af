"""A method: which weights of a backbone train, how, and what of them a run saves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import nn

from hf_cifar.data.batches import BatchDataset
from hf_cifar.models.load import Backbone
from hf_cifar.objectives.base import Datasets, Objective
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.training.arguments import RunArguments


@dataclass(frozen=True)
class Setup:
    """Everything that training takes, ready on its device.

    model: what `Method.prepare` made of the backbone. forward_flops: of one image. precision and
    memory layout stand in `recipe` and `arguments`.
    """

    recipe: Recipe
    arguments: RunArguments
    objective: Objective
    method: Method
    backbone: Backbone
    model: Any
    datasets: Datasets
    forward_flops: int


class Learner(Protocol):
    """Trains what a method lets train, and answers with the result.

    evaluation: the datasets to score, by name. resumed: whether an earlier start did a part of
    the training.
    """

    evaluation: dict[str, BatchDataset]

    @property
    def resumed(self) -> bool: ...

    def train(self) -> None:
        """Train, or resume from the newest good checkpoint. Every process calls this."""

    def predict(self, name: str) -> np.ndarray:
        """Return the outputs of the model for the images of an evaluation dataset: logits [n, C]
        for a classifier. Every process calls this.
        """

    def results(self) -> dict[str, Any]:
        """Return what metrics.json says about the training: steps, seconds, curves."""

    def trained_model(self) -> Any:
        """Return the whole trained model, in the first process at least. Every process calls
        this.
        """


class Method(ABC):
    """Which weights of a backbone train, how, and what of them a run saves.

    description: how a card says it, after the name of the backbone. tags: of the card.
    runs_backbone_once: whether no image goes through the backbone a second time.
    """

    description: ClassVar[str]
    tags: ClassVar[tuple[str, ...]] = ()
    runs_backbone_once: ClassVar[bool] = False

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @property
    def views(self) -> int | None:
        """How many views of each training image are computed once; None for new ones at every
        epoch. A single view is the image as evaluation sees it.
        """
        return None

    @abstractmethod
    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the model with `requires_grad` set to what trains.

        Raises UserError where there is nothing to train.
        """

    @abstractmethod
    def learner(self, setup: Setup) -> Learner:
        """Return what trains the prepared model."""

    def save(self, model: Any, folder: Path) -> None:
        """Write the trained model into a run's folder, as `from_pretrained` loads it."""
        model.save_pretrained(folder)

    def facts(self) -> dict[str, Any]:
        """Return what metrics.json says about the method."""
        return {
            "method": self.recipe.method,
            "method_description": self.description,
            "tags": list(self.tags),
            "adapter": False,
        }

    def passes(self, trainable_share: float) -> float:
        """Return what a training step costs, in forward passes: a full backward pass costs two.

        trainable_share: of the parameters.
        """
        return 3.0
