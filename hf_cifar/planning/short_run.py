"""One short, real fine-tuning: the same recipe, method, objective and trainer as `train`, scored on
validation and kept nowhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback

from hf_cifar.errors import Diverged
from hf_cifar.methods.gradient_learner import GradientLearner
from hf_cifar.models.structure import head
from hf_cifar.objectives.base import Datasets
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.runs.run import set_up

FIRST_STEPS = 8  # most of a run that only measures the time of a step
WATCHED_FROM = 4  # steps; a run of fewer has no middle


@dataclass(frozen=True)
class ShortRun:
    """A run's outcome.

    steps: of gradient descent; None for a method without. images: that it trained on, repeated
    ones counted anew. correct: bool [n], which validation images are right; None if the loss was
    not finite. half_accuracy: in the middle of the run, where that was asked for. features:
    float32 [n, D], what the head is given for the validation images; None for a frozen backbone.
    seconds: of the whole run. step_seconds: of one step. score_seconds: of scoring validation once.
    bf16, channels_last: how it computed.
    """

    steps: int | None
    images: int
    correct: np.ndarray | None
    half_accuracy: float | None
    features: np.ndarray | None
    seconds: float
    step_seconds: float
    score_seconds: float
    bf16: bool
    channels_last: bool

    @property
    def accuracy(self) -> float | None:
        return None if self.correct is None else float(self.correct.mean())


class StopAfter(TrainerCallback):
    """Stops training after the step during which some seconds have passed."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.start = seconds, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.perf_counter() - self.start > self.seconds:
            control.should_training_stop = True


def first_steps(recipe: Recipe, most_seconds: float) -> ShortRun:
    """Train a few steps, of about `most_seconds` together, to measure how long one takes."""
    return short_run(recipe, FIRST_STEPS, most_seconds=most_seconds)


def short_run(
    recipe: Recipe, steps: int | None, *, watch_half: bool = False, most_seconds: float = np.inf
) -> ShortRun:
    """Train for so many steps, with the recipe's schedule over all of them, and score validation.

    What follows epochs or averages over many steps is left out: an image-size schedule, frozen
    beginnings, early stopping, averaged weights.

    steps: None for a method without any. watch_half: also score in the middle. Raises UserError for
    bad input. A loss that is not finite is an outcome.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="hf-cifar-compare-") as folder, _quiet():
        setup = set_up(_shortened(recipe, folder, steps, watch_half))
        validation = setup.datasets.evaluation["validation"]
        datasets = Datasets(
            setup.datasets.train, {"validation": validation}
        )  # test is not looked at
        setup = dataclasses.replace(setup, datasets=datasets)
        learner = setup.method.learner(setup)
        if isinstance(learner, GradientLearner) and most_seconds < np.inf:
            learner.trainer.add_callback(StopAfter(most_seconds))
        began = time.perf_counter()
        correct, features = None, None
        try:
            learner.train()
            trained = time.perf_counter()
            with _head_inputs(setup.model) as inputs:
                outputs = learner.predict("validation")
            correct = outputs.argmax(1) == validation.labels
            features = np.concatenate(inputs) if inputs else None
        except Diverged:
            trained = time.perf_counter()
        ended = time.perf_counter()
        results = learner.results() if correct is not None else {}
        done, images, step_seconds = None, len(setup.datasets.train), 0.0
        if isinstance(learner, GradientLearner):
            done = learner.trainer.state.global_step
            images = done * learner.speed.images_per_step
            steady = learner.speed.steady()
            step_seconds = (trained - began) / max(done, 1)
            if steady:
                step_seconds = learner.speed.images_per_step / steady
        outcome = ShortRun(
            steps=done,
            images=images,
            correct=correct,
            half_accuracy=next(
                (e["eval_accuracy"] for e in results.get("history", ()) if "eval_accuracy" in e),
                None,
            ),
            features=features,
            seconds=time.perf_counter() - start,
            step_seconds=step_seconds,
            score_seconds=ended - trained,
            bf16=bool(setup.recipe.training["bf16"]),
            channels_last=bool(setup.recipe.channels_last),
        )
        del learner, setup
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return outcome


def _shortened(recipe: Recipe, folder: str, steps: int | None, watch_half: bool) -> Recipe:
    training = recipe.training | {
        "output_dir": folder,
        "report_to": "none",
        "push_to_hub": False,
        "disable_tqdm": True,
    }
    if steps is not None:
        training |= {"max_steps": steps, "logging_steps": steps}
        training |= {"eval_strategy": "no", "save_strategy": "no"}
        if watch_half and steps >= WATCHED_FROM:  # once: its double lies behind the end
            training |= {"eval_strategy": "steps", "eval_steps": steps // 2 + 1}
    return dataclasses.replace(
        recipe,
        training=training,
        tta="none",
        ema_decay=0.0,
        early_stopping_patience=None,
        head_epochs=0.0,
        unfreeze_every=0.0,
        image_size_schedule=None,
        monitor_features=False,
        temperature_scaling=False,
    )


@contextlib.contextmanager
def cheap_collections() -> Iterator[None]:
    """Let the garbage collector look only at what is made while the block runs.

    The Trainer collects garbage at the end of each run. With all the libraries loaded that took 1.1
    seconds each time, most of a tiny run.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Log warnings only: a race makes many runs, and has lines of its own."""
    logger = logging.getLogger("hf_cifar")
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _head_inputs(model: nn.Module) -> Iterator[list[np.ndarray]]:
    """Yield the list to which each batch adds what the model's head is given, float32 [B, D]."""
    batches: list[np.ndarray] = []

    def collect(_: nn.Module, args: tuple) -> None:
        batches.append(args[0].detach().float().cpu().numpy())

    hook = head(model)[1].register_forward_pre_hook(collect)
    try:
        yield batches
    finally:
        hook.remove()
