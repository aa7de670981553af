"""The learning-rate range test: the rate grows from step to step until the loss diverges (Smith
2017, arXiv 1506.01186, section 3.3), with the trainer, data and parameter groups of `train`.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from hf_cifar.errors import Diverged, UserError
from hf_cifar.methods.gradient_learner import GradientLearner
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.reporting.plot_style import drawing, save_figure
from hf_cifar.reporting.training_plots import range_test_plot
from hf_cifar.runs.run import set_up, start_processes

SMOOTHING = 0.9  # of the loss, from step to step
DIVERGENCE = 4.0  # times the least smoothed loss; fastai's `lr_find` stops there too
SKIPPED_START = 0.1  # of the steps, while the smoothed loss has hardly begun


@dataclass(frozen=True)
class RangeTest:
    """The steps of a range test, and two rates to take from it.

    rates, losses, smoothed: one for each step. steepest: the rate at which the loss falls fastest.
    tenth_of_least: a tenth of the rate at which the loss was least.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    steepest: float
    tenth_of_least: float


class RisingRate(TrainerCallback):
    """Let the rate of every group grow by the same factor each step; groups keep their ratios."""

    def __init__(self, base: float, start: float, end: float, steps: int) -> None:
        self.first, self.growth = start / base, (end / start) ** (1 / (steps - 1))
        self.rates = [start * self.growth**step for step in range(steps)]
        self.losses: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        schedule = kwargs["lr_scheduler"]  # a LambdaLR, since `lr_scheduler_type` is constant
        schedule.lr_lambdas = [lambda step: self.first * self.growth**step] * len(schedule.base_lrs)
        for group, base in zip(kwargs["optimizer"].param_groups, schedule.base_lrs, strict=True):
            group["lr"] = base * self.first

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        self.losses.append(logs["loss"])
        smoothed = smooth(self.losses)
        if smoothed[-1] > DIVERGENCE * min(smoothed):
            control.should_training_stop = True


def smooth(losses: list[float]) -> list[float]:
    """Return the exponential moving average of the losses, without the bias of its start."""
    smoothed, mean = [], 0.0
    for step, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smoothed.append(mean / (1 - SMOOTHING**step))
    return smoothed


def suggest(rates: list[float], losses: list[float]) -> RangeTest:
    """Return what the losses at rising rates say. Raises UserError where they never fell."""
    smoothed = smooth(losses)
    least = int(np.argmin(smoothed))
    first = int(SKIPPED_START * len(rates))
    if least <= first or len(losses) < 5:
        raise UserError(
            "find-lr: the loss never fell; start at a lower rate with --start, or take more steps"
            " with --steps"
        )
    slopes = np.gradient(np.array(smoothed), np.log(rates[: len(smoothed)]))
    steepest = first + int(np.argmin(slopes[first : least + 1]))
    return RangeTest(rates[: len(losses)], losses, smoothed, rates[steepest], rates[least] / 10)


def range_test(
    recipe: Recipe, *, start: float = 1e-6, end: float = 1.0, steps: int = 100
) -> RangeTest:
    """Train for at most `steps` steps at rates from `start` to `end`, and keep nothing of it.

    Raises UserError for bad input, and for a method that has no learning rate.
    """
    if not 0 < start < end or not math.isfinite(end):
        raise UserError(
            "find-lr: --start and --end must be positive, and --start below --end;"
            f" got {start:g} and {end:g}"
        )
    if steps < 10:
        raise UserError(f"find-lr: --steps must be at least 10, got {steps}")
    with tempfile.TemporaryDirectory(prefix="hf-cifar-find-lr-") as folder:
        recipe = _without_schedules(recipe, folder, steps)
        start_processes(recipe)
        setup = set_up(recipe)
        learner = setup.method.learner(setup)
        if not isinstance(learner, GradientLearner):
            raise UserError(f"find-lr: method: {recipe.method} has no learning rate")
        rising = RisingRate(setup.arguments.learning_rate, start, end, steps)
        learner.trainer.add_callback(rising)
        with contextlib.suppress(Diverged):  # the end that the test looks for
            learner.trainer.train()
    return suggest(rising.rates, rising.losses)


def _without_schedules(recipe: Recipe, folder: str, steps: int) -> Recipe:
    """Return the recipe with a constant rate, a log at each step, and nothing that changes over
    time or is saved.
    """
    training = recipe.training | {
        "output_dir": folder,
        "max_steps": steps,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "push_to_hub": False,
        "disable_tqdm": True,
    }
    return dataclasses.replace(
        recipe,
        training=training,
        ema_decay=0.0,
        early_stopping_patience=None,
        head_epochs=0.0,
        unfreeze_every=0.0,
        image_size_schedule=None,
        scale_learning_rate="none",
    )


def write(test: RangeTest, folder: Path) -> None:
    """Write find_lr.csv (learning_rate, loss, smoothed_loss) and find_lr.png into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "find_lr.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["learning_rate", "loss", "smoothed_loss"])
        rows.writerows(zip(test.rates, test.losses, test.smoothed, strict=True))
    with drawing():
        figure = range_test_plot(test.rates, test.losses, test.smoothed, test.steepest)
        save_figure(figure, folder / "find_lr.png")
