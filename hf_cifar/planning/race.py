"""Successive halving (Jamieson and Talwalkar 2016): all contestants train for a short time, the
better half for longer, and so on, until one is left.

Every round is a new, longer run with a schedule of its own, not the continuation of the last one. A
run's accuracy is what its learning rate has decayed to, and a run that goes on would have decayed
too early or not at all. As each round gives a contestant about twice the time, the repeated
beginnings cost less than half of the race.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from dataclasses import dataclass, field

import numpy as np

from hf_cifar.errors import UserError
from hf_cifar.evaluation.paired_test import PairedTest, paired_test
from hf_cifar.planning.short_run import ShortRun, first_steps, short_run
from hf_cifar.recipe.recipe import Recipe

log = logging.getLogger(__name__)
FIRST_SHARE, FIRST_SECONDS = 0.1, 3.0  # of the race, and of one candidate, to measure steps
MOST_GROWTH = 16  # of a run's length, within which curves are continued to see if they cross
LEAST_GROWTH = 1.2  # of a run's length, from which a rise in accuracy can be put down to it


@dataclass
class Contestant:
    """A backbone with a method. recipe: with the data keys of the race. runs: one a round.

    milliseconds: latency, which decides ties. step_seconds: of a step, or for a method without
    steps of a training image. set_up_seconds, score_seconds: of a run beside its training.
    has_steps: whether the method trains in steps; one without gets more images instead, at least
    least_images.
    """

    model: str
    method: str
    recipe: Recipe
    milliseconds: float
    step_seconds: float = 0.0
    set_up_seconds: float = 0.0
    score_seconds: float = 0.0
    has_steps: bool = True
    least_images: int = 2
    runs: list[ShortRun] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.model} with {self.method}"

    @property
    def accuracy(self) -> float | None:
        """Return the accuracy of the last run; None before it, or if its loss was not finite."""
        return self.runs[-1].accuracy if self.runs else None

    @property
    def rank(self) -> tuple[int, float, float]:
        """Return the key to sort contestants by: rounds, accuracy, latency."""
        accuracy = -1.0 if self.accuracy is None else self.accuracy
        return -len(self.runs), -accuracy, self.milliseconds


@dataclass(frozen=True)
class Outlook:
    """Whether a loser's curve may yet cross the winner's.

    behind: the winner less the loser, on the same images after the same round. told_apart: whether
    the 95 % interval of that lies above 0. growth: how many times longer the runs must be until the
    curves cross, if both go on to rise as they do for each doubling; None if they then never do.
    """

    behind: PairedTest
    told_apart: bool
    growth: float | None

    @property
    def may_cross(self) -> bool:
        return not self.told_apart or (self.growth is not None and self.growth <= MOST_GROWTH)


def measure_steps(contestants: list[Contestant], minutes: float) -> None:
    """Measure what a step of every contestant takes, and fix the precision that is faster here.

    Raises UserError where `minutes` are too few for one step of each.
    """
    for contestant in contestants:
        if not contestant.has_steps:
            continue
        share = 60 * minutes * FIRST_SHARE / len(contestants)
        run = first_steps(contestant.recipe, min(FIRST_SECONDS, share))
        _fix_precision(contestant, run)
        contestant.step_seconds, contestant.score_seconds = run.step_seconds, run.score_seconds
        trained = run.step_seconds * (run.steps or 0)
        contestant.set_up_seconds = max(0.0, run.seconds - trained - run.score_seconds)
    least = sum(contestant.step_seconds + contestant.score_seconds for contestant in contestants)
    if least > 60 * minutes:
        raise UserError(
            f"compare: --minutes {minutes:g}: one step of each of the {len(contestants)} candidates"
            f" takes {least / 60:.2g} minutes; allow more, or name fewer backbones or methods"
        )


def run_race(contestants: list[Contestant], deadline: float) -> Contestant:
    """Race until one is left, and return it; every contestant's `runs` are filled in.

    deadline: `time.monotonic()` at which the race should be over. It is kept as well as measured
    step times allow; a run has one step at least.
    """
    standing = list(contestants)
    rounds = max(1, math.ceil(math.log2(len(contestants))))
    for number in range(rounds):
        left = max(0.0, deadline - time.monotonic())
        share = left / (rounds - number) / len(standing)
        log.info(
            "round %d of %d: %d candidates, %.1f s each", number + 1, rounds, len(standing), share
        )
        for contestant in standing:
            run = _run(contestant, share, watch_half=number == 0)
            contestant.runs.append(run)
            accuracy = "the loss was not finite"
            if run.accuracy is not None:
                accuracy = f"accuracy {run.accuracy:.4f}"
            length = f"{run.steps:,} steps" if run.steps is not None else f"{run.images:,} images"
            log.info("%s: %s, %.1f s: %s", contestant.name, length, run.seconds, accuracy)
        standing = sorted(standing, key=lambda contestant: contestant.rank)
        standing = standing[: math.ceil(len(standing) / 2)]
    return standing[0]


def _run(contestant: Contestant, share: float, watch_half: bool) -> ShortRun:
    """Train a contestant for about `share` seconds, and note what that really took.

    A run that would be no longer than the last one is that run.
    """
    scorings = 2 if watch_half and contestant.has_steps else 1
    room = share - contestant.set_up_seconds - scorings * contestant.score_seconds
    units = max(1, int(room / max(contestant.step_seconds, 1e-9)))
    recipe = contestant.recipe
    if not contestant.has_steps:
        assert recipe.max_train_samples is not None
        units = min(max(units, contestant.least_images), recipe.max_train_samples)
    if contestant.runs:
        last = contestant.runs[-1]
        if units <= (last.images if last.steps is None else last.steps):
            return last
    if contestant.has_steps:
        run = short_run(recipe, units, watch_half=watch_half)
        if run.step_seconds and run.steps and run.steps > 1:
            contestant.step_seconds = run.step_seconds
        trained = run.step_seconds * (run.steps or 0)
        rest = run.seconds - trained - scorings * run.score_seconds
        contestant.set_up_seconds, contestant.score_seconds = max(0.0, rest), run.score_seconds
        return run
    run = short_run(dataclasses.replace(recipe, max_train_samples=units), None)
    _fix_precision(contestant, run)
    return run


def _fix_precision(contestant: Contestant, run: ShortRun) -> None:
    """Let later runs compute as this one, so that they need no measurement and may be compared."""
    training = contestant.recipe.training | {"bf16": run.bf16}
    contestant.recipe = dataclasses.replace(
        contestant.recipe, training=training, channels_last=run.channels_last
    )


def outlook(loser: Contestant, winner: Contestant) -> Outlook | None:
    """Return whether a loser may yet catch up; None where a loss was not finite."""
    number = len(loser.runs) - 1
    ours, theirs = loser.runs[number], winner.runs[number]
    if ours.correct is None or theirs.correct is None:
        return None
    behind = paired_test(theirs.correct, ours.correct)
    growth: float | None = None
    faster = rise_per_doubling(loser.runs[: number + 1])
    faster -= rise_per_doubling(winner.runs[: number + 1])
    if behind.difference <= 0:
        growth = 1.0
    elif faster > 0 and (doublings := behind.difference / faster) < 64:
        growth = 2.0**doublings
    return Outlook(behind, told_apart=behind.low > 0, growth=growth)


def rise_per_doubling(runs: list[ShortRun]) -> float:
    """Return how much the accuracy rose at the end for a doubling of the images trained on.

    It is that from the last round but one to the last, or within a first round from its middle.
    """
    last = runs[-1]
    if last.accuracy is None:
        return 0.0
    if len(runs) > 1:
        before = runs[-2]
        growth = last.images / max(before.images, 1)
        if before.accuracy is None or growth < LEAST_GROWTH:
            return 0.0
        return float((last.accuracy - before.accuracy) / np.log2(growth))
    return 0.0 if last.half_accuracy is None else last.accuracy - last.half_accuracy
