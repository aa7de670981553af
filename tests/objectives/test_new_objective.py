"""An objective of one's own: regression, with its labels, loss and metric; the trainer stays."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import EvalPrediction

from hf_cifar.data.load import Data, load_data
from hf_cifar.data.splits import Split
from hf_cifar.errors import UserError
from hf_cifar.models.load import Backbone, load_backbone
from hf_cifar.objectives.base import Datasets, Objective, ReadyModel
from hf_cifar.objectives.image_datasets import image_datasets
from hf_cifar.objectives.table import OBJECTIVES
from hf_cifar.recipe.load import load_recipe
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.runs.run import Run, train_recipe


def brightness(split: Split) -> np.ndarray:
    """Return float32 [n]: the mean of each image's pixels, in 0..1."""
    pixels = np.stack([split.images.picture(int(row)) for row in split.rows])
    return (pixels.reshape(len(pixels), -1).mean(1) / 255).astype(np.float32)


class Brightness(Objective):
    """Predict how bright an image is, by mean squared error."""

    checkpoint_metrics: ClassVar[Mapping[str, bool]] = {"mae": False}

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        data = load_data(recipe)
        splits = {
            name: dataclasses.replace(split, labels=brightness(split))
            for name in ("train", "validation", "test")
            if (split := getattr(data, name)) is not None
        }
        self.data: Data = dataclasses.replace(data, **splits)
        self.labels: dict[str, np.ndarray] = {}

    def load_backbone(self) -> Backbone:
        return load_backbone(self.recipe, ["brightness"])

    def datasets(self, ready: ReadyModel) -> Datasets:
        datasets = image_datasets(self.recipe, self.data, ready)
        self.labels = {name: np.asarray(d.labels) for name, d in datasets.evaluation.items()}
        return datasets

    def loss(
        self, outputs: Any, labels: Any, num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        error = F.mse_loss(outputs["logits"].float()[:, 0], labels, reduction="sum")
        return error / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        outputs, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        return {"mae": float(np.abs(outputs[:, 0] - labels).mean())}

    def score(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {
            f"{name}_mae": float(np.abs(values[:, 0] - self.labels[name]).mean())
            for name, values in outputs.items()
        }

    def facts(self) -> dict[str, Any]:
        return {"dataset": self.data.source, "train_samples": len(self.data.train)}


@pytest.fixture
def train_brightness(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Run]:
    """Return a function that trains the objective, named in a table of objectives, by a method."""
    monkeypatch.setitem(OBJECTIVES, "brightness", Brightness)

    def train(method: str, **keys: Any) -> Run:
        values = {
            "objective": "brightness",
            "method": method,
            "model_name_or_path": str(tiny("vit")),
            "dataset_name": "sample",
            "max_train_samples": 256,
            "max_eval_samples": 100,
            "validation_fraction": 0.2,
            "random_resized_crop_scale": None,
            "learning_rate": 1e-2,
            "num_train_epochs": 4,
            "per_device_train_batch_size": 16,
            "metric_for_best_model": "mae",
            "output_dir": str(tmp_path / method),
            "bf16": False,
            "channels_last": False,
            "use_cpu": True,
            "disable_tqdm": True,
        }
        recipe_file = tmp_path / f"{method}.yaml"
        recipe_file.write_text(json.dumps(values | keys))
        return train_recipe(load_recipe(str(recipe_file)))

    return train


@pytest.mark.parametrize("method", ["full", "partial", "lora"])
def test_an_objective_of_ones_own_trains_with_every_method(
    method: str, train_brightness: Callable[..., Run]
) -> None:
    run = train_brightness(method)
    evaluations = [entry["eval_mae"] for entry in run.metrics["history"] if "eval_mae" in entry]
    assert len(evaluations) == 4
    assert run.metrics["best_step"] is not None  # chosen by the objective's own metric
    labels = brightness(load_data(load_recipe(str(run.path))).test)  # type: ignore[arg-type]
    of_the_mean = float(np.abs(labels - labels.mean()).mean())
    assert run.metrics["test_mae"] < 0.8 * of_the_mean
    assert (run.path / "model.safetensors").is_file() and (run.path / "README.md").is_file()


def test_a_method_that_makes_no_sense_is_refused(train_brightness: Callable[..., Run]) -> None:
    with pytest.raises(UserError, match="method: linear can't train `objective: brightness`"):
        train_brightness("linear")


def test_an_unknown_objective_is_refused(train_brightness: Callable[..., Run]) -> None:
    with pytest.raises(UserError, match=r"objective: must be one of .*brightness, got 'guessing'"):
        train_brightness("full", objective="guessing")
