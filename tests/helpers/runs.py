"""Tiny runs on the packaged sample, and what two runs of one recipe must have in common."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import yaml
from matplotlib.figure import Figure
from safetensors.torch import load_file
from transformers import pipeline

import hf_cifar
from hf_cifar.data.load import load_split
from hf_cifar.recipe.load import load_recipe
from hf_cifar.runs.run import Run

LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
METHODS = ("full", "linear", "partial", "lora")
SMALL_RECIPE: dict[str, Any] = {
    "dataset_name": "sample",
    "max_train_samples": 40,
    "max_eval_samples": 20,
    "validation_fraction": 0.1,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 20,
    "learning_rate": 0.005,
    "logging_steps": 2,
    "unfreeze_blocks": 1,
    "lora_r": 2,
    "lora_alpha": 4,
    # Left out, these two would be measured, and two measurements may differ.
    "bf16": False,
    "channels_last": False,
    "dataloader_num_workers": 0,
    "disable_tqdm": True,
}
CHECKPOINT_EVERY_3 = {
    "eval_strategy": "steps",
    "eval_steps": 3,
    "save_strategy": "steps",
    "save_steps": 3,
}
CLOCK_KEYS = ("runtime", "per_second")  # parts of the names of figures that a clock gives
MACHINE_KEYS = ("peak_", "seconds_", "energy_")  # beginnings of names of figures of the machine
ONE_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


def write_recipe(path: Path, model: Path, **keys: Any) -> Path:
    """Write SMALL_RECIPE for the model folder, with `keys` in place of its own; return `path`."""
    path.write_text(yaml.safe_dump(SMALL_RECIPE | {"model_name_or_path": str(model)} | keys))
    return path


def skip_drawing() -> None:
    """Save every figure as a picture of one pixel from here on: drawing is more than half of the
    time of a tiny run.
    """

    def save_one_pixel(figure: Figure, target: Any, **_: Any) -> None:
        target.write(ONE_PIXEL) if hasattr(target, "write") else Path(target).write_bytes(ONE_PIXEL)

    Figure.savefig = save_one_pixel  # type: ignore[method-assign,assignment]


@contextmanager
def without_drawing() -> Iterator[None]:
    """`skip_drawing` while the block runs."""
    draw = Figure.savefig
    skip_drawing()
    try:
        yield
    finally:
        Figure.savefig = draw  # type: ignore[method-assign]


def train_into(folder: Path, model: Path, *, fresh: bool = False, **keys: Any) -> Run:
    """Train a model folder into `folder` by a recipe file beside it, with plots of one pixel."""
    recipe = write_recipe(folder.with_suffix(".yaml"), model, **keys)
    with without_drawing():
        return hf_cifar.train(str(recipe), fresh=fresh, output_dir=str(folder))


def saved_weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.path / "model.safetensors")


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Return the largest absolute difference of two sets of weights that have the same names."""
    assert list(first) == list(second)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def log_without_times(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the training log of metrics.json without the figures that a clock gives."""
    return [
        {name: value for name, value in entry.items() if not name.endswith(CLOCK_KEYS)}
        for entry in metrics.get("history", ())
    ]


def repeatable_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of metrics.json that must be the same in two runs of one recipe."""
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, float | int)
        and not any(part in name for part in CLOCK_KEYS)
        and not name.startswith(MACHINE_KEYS)
    }


def assert_same_weights(first: Run, second: Run) -> None:
    """Assert that two runs ended with the same bits."""
    ours, theirs = saved_weights(first), saved_weights(second)
    assert list(ours) == list(theirs)
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different, different


def assert_same_run(first: Run, second: Run) -> None:
    """Assert that two runs have the same weights, training log and metrics, to the bit."""
    assert_same_weights(first, second)
    assert log_without_times(first.metrics) == log_without_times(second.metrics)
    assert repeatable_metrics(first.metrics) == repeatable_metrics(second.metrics)


def held_out_images(run: Run) -> tuple[list[PIL.Image.Image], np.ndarray]:
    """Return the run's test images, by its own recipe, and their labels, int64 [n]."""
    split = load_split(load_recipe(str(run.path / "recipe.yaml")), "test")
    pixels = split.images.batch(split.rows).permute(0, 2, 3, 1).numpy()
    return [PIL.Image.fromarray(image) for image in pixels], split.labels


def pipeline_probabilities(
    folder: Path, images: list[PIL.Image.Image], labels: list[str] = LABELS
) -> np.ndarray:
    """Return float [n, C], the answers of `transformers.pipeline`."""
    classify = pipeline("image-classification", model=str(folder), top_k=len(labels))
    scores = [
        {answer["label"]: answer["score"] for answer in answers} for answers in classify(images)
    ]
    return np.array([[score[label] for label in labels] for score in scores])
