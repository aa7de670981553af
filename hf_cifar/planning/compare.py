"""Which backbone and method to take: a race of short, real fine-tunings under the user's limits,
with what frozen features say, and what each model costs to use, beside it.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import shlex
import time
from dataclasses import asdict, dataclass
from typing import Any

from hf_cifar.data.load import check_classes, load_data
from hf_cifar.data.splits import Data
from hf_cifar.distributed import world_size
from hf_cifar.errors import UserError
from hf_cifar.evaluation.metrics import wilson
from hf_cifar.evaluation.paired_test import paired_test
from hf_cifar.features.frozen_backbone import FrozenBackbone, load_frozen
from hf_cifar.methods.table import METHODS
from hf_cifar.planning.contestants import contestant_recipes, race_keys, winner_yaml
from hf_cifar.planning.frozen_scores import FrozenScores, frozen_scores
from hf_cifar.planning.inference_cost import InferenceCost, measure_inference
from hf_cifar.planning.race import Contestant, measure_steps, outlook, run_race
from hf_cifar.planning.race_limits import Limits, within_limits
from hf_cifar.planning.short_run import cheap_collections
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.runs.run import start_processes
from hf_cifar.training.feature_monitor import measures

log = logging.getLogger(__name__)
MOST_VALIDATION = 1000  # images that a race is decided on, unless max_eval_samples is set
# Training images for the scores of frozen features: at most, and for a minute of all backbones (a
# classifier takes some milliseconds for each image on a busy core).
MOST_FROZEN, FROZEN_PER_MINUTE = 5000, 2000
FROZEN_SHARE = 0.15  # of the minutes, about, for the features themselves
# For each batch size whose speed is measured, and as a share of the minutes for all backbones.
MEASURING_SECONDS, MEASURING_SHARE = 1.0, 0.01


@dataclass(frozen=True)
class Measured:
    """A backbone before it trains."""

    cost: InferenceCost
    frozen: FrozenScores
    image_size: int


def compare(
    words: list[str], methods: list[str], keys: dict[str, Any], limits: Limits, minutes: float
) -> tuple[dict[str, Any], str]:
    """Race backbones and methods for some minutes; return the result and the winner's recipe file.

    The result has `candidates`, best first, `choice`, and what else compare.json holds. Accuracies
    are on validation images; test images are not looked at. The minutes count from when the data is
    loaded.

    words: backbones or recipes. keys: recipe keys with their text, on top of all.
    Raises UserError for bad input, and for limits that no backbone meets.
    """
    if world_size() > 1:
        raise UserError("compare: runs in one process; start it without a launcher")
    recipes = contestant_recipes(words, methods, keys)
    shared = next(iter(recipes.values()))
    changes = race_keys(shared, keys, MOST_VALIDATION)
    raced = {pair: dataclasses.replace(recipe, **changes) for pair, recipe in recipes.items()}
    for recipe in raced.values():
        start_processes(recipe)  # refuses keys before anything is measured
    data = _load(next(iter(raced.values())))
    start = time.monotonic()
    deadline = start + 60 * minutes

    costs = {}
    for word in words:
        frozen, size = _load_frozen(raced[word, methods[0]], data)
        seconds = min(MEASURING_SECONDS, 60 * minutes * MEASURING_SHARE / len(words))
        costs[word] = measure_inference(frozen, size, limits.max_memory or math.inf, seconds)
        log.info("%s: %s", word, _cost_line(costs[word]))
    meeting = within_limits(costs, limits)
    removed = [
        {"model": word, "missed": limits.describe_misses(costs[word])}
        for word in words
        if word not in meeting
    ]
    for row in removed:
        log.info("%s takes no part: %s", row["model"], row["missed"])
    backbones = {}
    for word in meeting:
        frozen, size = _load_frozen(raced[word, methods[0]], data)  # one at a time in memory
        seconds = 60 * minutes * FROZEN_SHARE / len(meeting)
        images = min(
            int(seconds * costs[word].images_per_second),
            int(minutes * FROZEN_PER_MINUTE / len(meeting)),
            MOST_FROZEN,
        )
        least = 2 * len(data.label_names)
        scores = frozen_scores(frozen, data, max(images, least), shared.seed)
        backbones[word] = Measured(costs[word], scores, size)
    del frozen

    contestants = []
    for (word, method), recipe in raced.items():
        if word in meeting:
            contestants.append(_contestant(word, method, recipe, backbones[word], data))
    with cheap_collections():
        measure_steps(contestants, minutes)
        winner = run_race(contestants, deadline)
    ranked = sorted(contestants, key=lambda contestant: contestant.rank)
    if winner.accuracy is None:
        raise UserError(
            "compare: the loss of every candidate left was not finite; lower --learning_rate"
        )
    result: dict[str, Any] = {
        "candidates": [_row(c, winner, backbones[c.model], data) for c in ranked],
        "removed": removed,
        "limits": {name: value for name, value in asdict(limits).items() if value is not None},
        "minutes": minutes,
        "seconds": time.monotonic() - start,
        "data": data.source,
        "validation_images": len(data.validation.labels) if data.validation else 0,
        "seed": shared.seed,
        "warnings": _warnings(contestants, minutes),
    }
    result["frozen_choice"] = _frozen_choice(result["candidates"])
    choice = {
        name: result["candidates"][0][name]
        for name in ("model", "method", "accuracy", "parameters", "milliseconds", "memory_bytes")
    }
    result["choice"] = choice | {"reason": _reason(ranked, result)}
    command = ["hf-cifar", "compare", *words, "--methods", ",".join(methods)]
    command += ["--minutes", f"{minutes:g}"]
    for name, value in keys.items():
        command += [f"--{name}", str(value)]
    comment = (
        f"The winner of a race on {data.source}, of {len(contestants)} candidates"
        f" in {minutes:g} minutes:\n{result['choice']['reason']}\n{shlex.join(command)}"
    )
    return result, winner_yaml(recipes[winner.model, winner.method], comment)


def _load(recipe: Recipe) -> Data:
    """Return the data of the race. Raises UserError for data without validation images."""
    data = load_data(recipe)
    splits = [split for split in (data.train, data.validation) if split is not None]
    for message in (*data.messages, *check_classes(data.source, splits)):
        log.info("%s", message)
    if data.validation is None:
        raise UserError(
            f"compare: {data.source} has no validation images to score on; raise"
            " validation_fraction above 0"
        )
    return data


def _load_frozen(recipe: Recipe, data: Data) -> tuple[FrozenBackbone, int]:
    """Return a frozen backbone and the side of its images in pixels."""
    frozen, backbone = load_frozen(recipe, data.label_names)
    return frozen, backbone.image_size


def _contestant(
    word: str, method: str, recipe: Recipe, backbone: Measured, data: Data
) -> Contestant:
    contestant = Contestant(word, method, recipe, backbone.cost.milliseconds)
    if METHODS[method](recipe).runs_backbone_once:
        most = min(recipe.max_train_samples or len(data.train), len(data.train))
        contestant.recipe = dataclasses.replace(recipe, max_train_samples=most)
        contestant.has_steps = False
        contestant.least_images = min(most, 2 * len(data.label_names))
        speed = backbone.cost.images_per_second
        contestant.step_seconds = 1 / speed + backbone.frozen.fit_seconds
        contestant.score_seconds = len(data.validation or ()) / speed
    return contestant


def _row(
    contestant: Contestant, winner: Contestant, backbone: Measured, data: Data
) -> dict[str, Any]:
    """Return what compare.json says of a candidate."""
    last, cost, frozen = contestant.runs[-1], backbone.cost, backbone.frozen
    row: dict[str, Any] = {
        "model": contestant.model,
        "method": contestant.method,
        "accuracy": contestant.accuracy,
        "accuracy_ci95": None,
        **asdict(cost),
        "image_size": backbone.image_size,
        "rounds": len(contestant.runs),
        "steps": last.steps,
        "images": last.images,
        "seconds": last.seconds,
        "runs": [
            {
                "steps": run.steps,
                "images": run.images,
                "accuracy": run.accuracy,
                "half_accuracy": run.half_accuracy,
                "seconds": run.seconds,
            }
            for run in contestant.runs
        ],
        "knn_accuracy": frozen.knn_accuracy,
        "probe_accuracy": frozen.probe_accuracy,
        "frozen_train_images": frozen.train_images,
        "frozen_effective_rank": frozen.effective_rank,
        "effective_rank": frozen.effective_rank,
        "feature_distance": 0.0,
        "behind": None,
        "may_cross": False,
        "crosses_at": None,
    }
    if last.correct is not None:
        row["accuracy_ci95"] = list(wilson(int(last.correct.sum()), len(last.correct)))
    if last.features is not None:
        assert data.validation is not None
        moved = measures(last.features, data.validation.labels, frozen.features)
        row |= {"effective_rank": moved["effective_rank"], "feature_distance": 1 - moved["cka"]}
    if contestant is not winner and (future := outlook(contestant, winner)) is not None:
        row["behind"] = asdict(future.behind)
        row["may_cross"], row["crosses_at"] = future.may_cross, future.growth
    return row


def _warnings(contestants: list[Contestant], minutes: float) -> list[str]:
    """Return what makes the race tell less than it should."""
    short = [c.name for c in contestants if c.has_steps and c.runs[0].steps == 1]
    if not short:
        return []
    return [
        f"--minutes {minutes:g} left {len(short)} of {len(contestants)} candidates a single step in"
        f" the first round, because loading and scoring took the rest ({short[0]}); allow more"
    ]


def _frozen_choice(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the scores of frozen features alone would have chosen: the backbone with the best
    linear probe, and how good its best candidate in the race was.
    """
    chosen = max(rows, key=lambda row: row["probe_accuracy"])["model"]
    by_knn = max(rows, key=lambda row: row["knn_accuracy"])["model"]
    place, row = next((n, row) for n, row in enumerate(rows, 1) if row["model"] == chosen)
    return {
        "model": chosen,
        "probe_accuracy": row["probe_accuracy"],
        "by_knn": by_knn,
        "best_method": row["method"],
        "place": place,
        "accuracy": row["accuracy"],
    }


def _reason(ranked: list[Contestant], result: dict[str, Any]) -> str:
    """Return which candidate to take and why, in one sentence."""
    winner, images = ranked[0], result["validation_images"]
    last = winner.runs[-1]
    length = f"{last.steps:,} steps" if last.steps is not None else f"{last.images:,} images"
    limits = ", within the limits" if result["limits"] else ""
    text = (
        f"Take {winner.name}: {100 * (winner.accuracy or 0):.1f} % of {images:,} validation images"
        f" after {length}{limits}"
    )
    if len(ranked) == 1 or ranked[1].accuracy is None:
        return f"{text}."
    second = ranked[1]
    number = len(second.runs) - 1
    ours, theirs = winner.runs[number].correct, second.runs[number].correct
    assert ours is not None and theirs is not None
    test = paired_test(ours, theirs)
    interval = f"95 % interval {100 * test.low:.1f} to {100 * test.high:.1f}"
    if test.low > 0:
        return f"{text}, {100 * test.difference:.1f} points ({interval}) above {second.name}."
    return (
        f"{text}; {second.name} is {100 * test.difference:.1f} points ({interval}) behind, which is"
        " no more than chance would give."
    )


def _cost_line(cost: InferenceCost) -> str:
    return (
        f"{cost.parameters / 1e6:.1f} M parameters, {cost.flops / 1e9:.2f} GFLOPs,"
        f" {cost.milliseconds:.1f} ms and {cost.memory_bytes / 1e6:.0f} MB for one image,"
        f" {cost.images_per_second:.0f} images/s and {cost.best_batch_memory_bytes / 1e6:.0f} MB in"
        f" batches of {cost.best_batch}"
    )
