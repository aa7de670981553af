"""The learning-rate range test: the rate grows from step to step until the loss breaks away (Smith
2017, arXiv 1506.01186, section 3.3), with the very trainer, data and parameter groups that `train`
uses.
"""

from __future__ import annotations

import contextlib
import csv
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from hf_cifar.errors import UserError
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.runs.run import prepare
from hf_cifar.training.arguments import training_arguments
from hf_cifar.training.trainer import Diverged

SMOOTHING = 0.9  # of the loss, from step to step
BREAKS_AWAY = 4.0  # times the least smoothed loss: fastai's `lr_find` stops there too
LEFT_OUT = 0.1  # of the steps at the start, where the smoothed loss has hardly begun


@dataclass(frozen=True)
class RangeTest:
    """Rates, losses and smoothed losses of the steps that were made, and two rates to take: where
    the loss falls fastest, and a tenth of the one where it was least.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    steepest: float
    tenth_of_least: float


class RisingRate(TrainerCallback):
    """The rate of every group grows by the same factor a step; groups keep their ratios."""

    def __init__(self, base: float, start: float, end: float, steps: int) -> None:
        self.first, self.growth = start / base, (end / start) ** (1 / (steps - 1))
        self.rates = [start * self.growth**i for i in range(steps)]
        self.losses: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        schedule = kwargs["lr_scheduler"]  # a LambdaLR: `lr_scheduler_type: constant`
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
        if smoothed[-1] > BREAKS_AWAY * min(smoothed):
            control.should_training_stop = True


def smooth(losses: list[float]) -> list[float]:
    """Their exponential moving average, with the start's bias taken out."""
    found, mean = [], 0.0
    for i, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        found.append(mean / (1 - SMOOTHING**i))
    return found


def suggest(rates: list[float], losses: list[float]) -> RangeTest:
    """What the losses at rising rates say. Raises UserError where they never fell."""
    smoothed = smooth(losses)
    least = int(np.argmin(smoothed))
    first = int(LEFT_OUT * len(rates))
    if least <= first or len(losses) < 5:
        raise UserError(
            "find-lr: the loss never fell: start at a lower rate with --start, or take more steps with --steps"
        )
    slopes = np.gradient(np.array(smoothed), np.log(rates[: len(smoothed)]))
    steepest = first + int(np.argmin(slopes[first : least + 1]))
    return RangeTest(rates[: len(losses)], losses, smoothed, rates[steepest], rates[least] / 10)


def range_test(
    recipe: Recipe, *, start: float = 1e-6, end: float = 1.0, steps: int = 100
) -> RangeTest:
    """Train for at most `steps` steps at rates from `start` to `end`; nothing of it is kept. Raises
    UserError.
    """
    if not 0 < start < end or not math.isfinite(end):
        raise UserError(
            f"find-lr: --start and --end must be numbers above 0 that rise, got {start:g} and {end:g}"
        )
    if steps < 10:
        raise UserError(f"find-lr: --steps must be at least 10, got {steps}")
    t = recipe.training
    t |= {
        "max_steps": steps,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
    }
    t |= {"lr_scheduler_type": "constant", "warmup_steps": 0, "push_to_hub": False}
    recipe.ema_decay, recipe.early_stopping_patience, recipe.head_epochs, recipe.unfreeze_every = (
        0.0,
        None,
        0.0,
        0.0,
    )
    recipe.probe_learning_rates = recipe.probe_weight_decays = recipe.image_size_schedule = None
    recipe.scale_learning_rate, t["disable_tqdm"] = "none", True
    with tempfile.TemporaryDirectory(prefix="hf-cifar-find-lr-") as folder:
        t["output_dir"] = folder
        args = training_arguments(recipe)
        rising = RisingRate(args.learning_rate, start, end, steps)
        trainer = prepare(recipe, args).trainer()
        trainer.add_callback(rising)
        with contextlib.suppress(Diverged):  # the end that was looked for
            trainer.train()
    return suggest(rising.rates, rising.losses)


def write(found: RangeTest, folder: Path) -> None:
    """find_lr.csv (learning_rate, loss, smoothed_loss) and find_lr.png into the folder."""
    from hf_cifar.reporting import plots

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "find_lr.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["learning_rate", "loss", "smoothed_loss"])
        rows.writerows(zip(found.rates, found.losses, found.smoothed, strict=True))
    plots.save(
        plots.range_test(found.rates, found.losses, found.smoothed, found.steepest),
        folder / "find_lr.png",
    )
