"""The rules of a race: what is measured, who goes on, and which curves may yet cross."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from hf_cifar.errors import UserError
from hf_cifar.evaluation.backbone_recipe import backbone_recipe
from hf_cifar.planning.contestants import contestant_recipes, winner_yaml
from hf_cifar.planning.inference_cost import InferenceCost, peak_memory
from hf_cifar.planning.race import Contestant, outlook, rise_per_doubling, run_race
from hf_cifar.planning.race_limits import Limits, within_limits
from hf_cifar.planning.short_run import ShortRun, short_run
from hf_cifar.recipe.load import load_recipe
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.reporting.compare_plot import pareto_front

COST = InferenceCost(1000, 10**6, 4.0, 10**6, 8, 500.0, 3 * 10**6)


def outcome(right: int, images: int, half: float | None = None, of: int = 1000) -> ShortRun:
    """Return a run that gets the first `right` of `of` validation images right."""
    return ShortRun(
        steps=images // 32,
        images=images,
        correct=np.arange(of) < right,
        half_accuracy=half,
        features=None,
        seconds=1.0,
        step_seconds=0.01,
        score_seconds=0.01,
        bf16=False,
        channels_last=False,
    )


def contestant(*runs: ShortRun, model: str = "a") -> Contestant:
    return Contestant(model, "full", Recipe(), 1.0, runs=list(runs))


def test_memory_is_weights_and_what_lives_at_a_time():
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers)
    images = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        measured = peak_memory(lambda: model(images), model, torch.device("cpu"))
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert measured == weights + 2 * (2 * 8 * 16 * 16 * 4)  # a layer's input and its output


def test_limits_name_the_nearest():
    large = dataclasses.replace(COST, parameters=3000, milliseconds=5.0)
    costs = {"small": COST, "large": large}
    assert within_limits(costs, Limits(max_parameters=2000)) == ["small"]
    assert within_limits(costs, Limits()) == ["small", "large"]
    with pytest.raises(UserError, match=r"nearest is small: 4 ms, --max-milliseconds 2 .*100.0 %"):
        within_limits(costs, Limits(max_milliseconds=2.0))
    with pytest.raises(UserError, match=r"500 images/s, --min-images-per-second 1000 .*50.0 %"):
        within_limits({"small": COST}, Limits(min_images_per_second=1000))


def test_rise_within_a_round_and_from_round_to_round():
    assert rise_per_doubling([outcome(800, 320, half=0.7)]) == pytest.approx(0.1)
    first, second = outcome(800, 320, half=0.1), outcome(860, 1280)
    assert rise_per_doubling([first, second]) == pytest.approx(0.03)
    assert rise_per_doubling([first, dataclasses.replace(second, images=330)]) == 0.0


def test_curves_that_may_cross():
    winner = contestant(outcome(900, 320, half=0.89), outcome(950, 640))
    rising = outlook(contestant(outcome(800, 320, half=0.75)), winner)
    assert rising is not None and rising.told_apart and rising.may_cross
    assert rising.growth == pytest.approx(2 ** (0.1 / 0.04))
    flat = outlook(contestant(outcome(800, 320, half=0.79)), winner)
    assert flat is not None and flat.growth is None and not flat.may_cross
    near = outlook(contestant(outcome(899, 320, half=0.898)), winner)
    assert near is not None and not near.told_apart and near.may_cross


def test_front_of_accuracy_and_cost():
    rows = [{"ms": m, "accuracy": a} for m, a in ((3, 0.9), (1, 0.7), (2, 0.6), (4, 0.9), (1, 0.5))]
    assert [(row["ms"], row["accuracy"]) for row in pareto_front(rows, "ms")] == [
        (1, 0.7),
        (3, 0.9),
    ]


SMALL = {"dataset_name": "sample", "max_train_samples": "60", "max_eval_samples": "20"}
SMALL |= {"validation_fraction": "0.1", "bf16": "false", "channels_last": "false"}


def test_a_short_run_repeats_to_the_bit_and_scores_validation(tiny):
    recipe = contestant_recipes([str(tiny("resnet"))], ["full"], SMALL)[str(tiny("resnet")), "full"]
    runs = [short_run(recipe, 4, watch_half=True) for _ in range(2)]
    assert runs[0].steps == 4 and runs[0].images == 128 and runs[0].half_accuracy is not None
    assert np.array_equal(runs[0].features, runs[1].features)
    assert len(runs[0].correct) == 20


def test_a_race_halves_and_gives_more_time(tiny):
    words = [str(tiny("resnet"))]
    recipes = contestant_recipes(words, ["full", "lora", "partial"], SMALL)
    contestants = [
        Contestant(word, method, recipe, 1.0, step_seconds=0.02)
        for (word, method), recipe in recipes.items()
    ]
    run_race(contestants, deadline=-math.inf)  # no time at all: one step each
    assert all([run.steps for run in c.runs] == [1] * len(c.runs) for c in contestants)
    assert sorted(len(c.runs) for c in contestants) == [1, 2, 2]


def test_recipes_keep_their_own_keys_for_their_own_method():
    config = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
    keys = {"dataset_name": "sample", "from_scratch": "true", "model_config": config}
    recipes = contestant_recipes(["resnet_18/full"], ["full", "lora"], keys)
    full, lora = recipes["resnet_18/full", "full"], recipes["resnet_18/full", "lora"]
    assert full == backbone_recipe("resnet_18/full", keys)
    assert (lora.method, lora.lora_target_modules, lora.image_size) == ("lora", "all", 96)


def test_winner_yaml_reads_back(tiny, tmp_path):
    recipes = contestant_recipes([str(tiny("vit"))], ["lora"], SMALL)
    recipe = recipes[str(tiny("vit")), "lora"]
    (tmp_path / "winner.yaml").write_text(winner_yaml(recipe, "two\nlines"))
    read = load_recipe(str(tmp_path / "winner.yaml"), {"output_dir": str(recipe.output_dir)})
    assert read.to_dict() == recipe.to_dict()


def test_different_data_are_refused(tmp_path, tiny):
    for name, data in (("one", "sample"), ("two", "uoft-cs/cifar10")):
        text = f"model_name_or_path: {tiny('vit')}\ndataset_name: {data}\n"
        (tmp_path / f"{name}.yaml").write_text(text)
    words = [str(tmp_path / f"{name}.yaml") for name in ("one", "two")]
    with pytest.raises(UserError, match="dataset_name is sample"):
        contestant_recipes(words, ["full"], {})
