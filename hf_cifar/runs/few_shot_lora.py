"""LoRA on a few labels a class, beside the heads on frozen features of `few-shot`."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from hf_cifar.errors import UserError
from hf_cifar.evaluation.few_shot import FewShotData, draw_rows, fit_heads, over_draws
from hf_cifar.methods.base import Setup
from hf_cifar.models.structure import head as find_head
from hf_cifar.objectives.base import ReadyModel
from hf_cifar.objectives.image_datasets import image_datasets
from hf_cifar.recipe.fields import DataKeys, ModelKeys, TransformKeys
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.runs.run import set_up

log = logging.getLogger(__name__)
LORA_FROM = 10  # images a class; with fewer the adapters learn the images themselves
STEPS, BATCH = (
    40,
    32,
)  # as few as pay: a step costs a CPU seconds, and the head has converged before
RATE, HEAD_RATE = 1e-3, 1e-4  # of AdamW, with a cosine schedule; the head starts where it is good


def check_lora_shots(shots: Sequence[int]) -> None:
    """Raise UserError where no number of shots is large enough for LoRA."""
    if max(shots) < LORA_FROM:
        raise UserError(
            f"--lora: trains from {LORA_FROM} images a class on, and --shots names"
            f" {', '.join(map(str, shots))}; name more"
        )


def lora_results(study: FewShotData, shots: Sequence[int], draws: int) -> list[dict[str, Any]]:
    """Return rows like those of `few_shot`, with the method `lora`, for 10 images a class and more.

    Adapters of rank `lora_r` train for STEPS steps through the code of `hf-cifar train`, on the
    images of each draw. The head starts as the logistic regression on frozen features (as in
    Kumar et al. 2022), so the steps begin at the accuracy of that. Nothing is chosen, on test
    images or otherwise.

    Raises UserError for a backbone without modules that take adapters.
    """
    results = []
    for count in (count for count in shots if count >= LORA_FROM):
        accuracies = []
        for draw in range(draws):
            accuracies.append(_lora_accuracy(study, count, draw))
            log.info("lora: %d shots, draw %d: accuracy %.4f", count, draw, accuracies[-1])
        results.append({"shots": count, "method": "lora"} | over_draws(accuracies))
    return results


def _lora_accuracy(study: FewShotData, shots: int, draw: int) -> float:
    """Return the accuracy on test after the training on one draw."""
    with tempfile.TemporaryDirectory(prefix="hf-cifar-lora-") as folder, _fewer_messages():
        setup = lora_setup(study, shots, draw, folder)
        learner = setup.method.learner(setup)
        learner.train()
        answers = learner.predict("test").argmax(1)
    return float((answers == study.test_labels).mean())


def lora_setup(study: FewShotData, shots: int, draw: int, folder: str) -> Setup:
    """Return what the training on one draw takes, with the head at logistic regression's place."""
    rows = draw_rows(study, shots, draw)
    labels = torch.from_numpy(study.data.train.labels).to(rows.device)[rows]
    start = fit_heads(study, rows, labels)["logistic"].linear
    setup = set_up(_recipe(study, folder))
    with torch.no_grad():
        _, linear = find_head(setup.model)
        linear.weight.copy_(start.weight)
        linear.bias.copy_(start.bias)
    pool, places = study.data.train, rows.cpu().numpy()
    drawn = replace(pool, rows=pool.rows[places], labels=pool.labels[places])
    frozen = study.frozen
    ready = ReadyModel(setup.backbone, setup.model, frozen.device, frozen.channels_last)
    datasets = image_datasets(setup.recipe, replace(study.data, train=drawn), ready)
    return replace(setup, datasets=datasets)


def _recipe(study: FewShotData, folder: str) -> Recipe:
    """Return the recipe of the trainings, on all images that labels are drawn from."""
    blocks = (ModelKeys, DataKeys, TransformKeys)
    names = [field.name for block in blocks for field in fields(block)]
    keys: dict[str, Any] = {name: getattr(study.recipe, name) for name in names}
    keys |= {name: getattr(study.recipe, name) for name in vars(study.recipe) if "lora_" in name}
    recipe = Recipe(**keys, method="lora", head_learning_rate=HEAD_RATE, name=study.recipe.name)
    recipe.image_size_schedule, recipe.channels_last = None, study.frozen.channels_last
    recipe.training |= {
        "seed": study.recipe.seed,
        "bf16": study.frozen.bf16,
        "output_dir": str(Path(folder) / "run"),
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": study.recipe.training["per_device_eval_batch_size"],
        "learning_rate": RATE,
        "eval_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return recipe


@contextlib.contextmanager
def _fewer_messages() -> Iterator[None]:
    """Log warnings alone: a training's own lines would repeat for each draw."""
    package = logging.getLogger("hf_cifar")
    level = package.level
    package.setLevel(logging.WARNING)
    try:
        yield
    finally:
        package.setLevel(level)
