"""The learning-rate range test: rates rise as asked, groups keep their ratios, and the suggestion
is where the loss falls.
"""

import csv
import math

import numpy as np
import pytest
from helpers.runs import write_recipe
from helpers.watching import trainer_callbacks
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainerCallback

from hf_cifar.cli import main
from hf_cifar.errors import UserError
from hf_cifar.planning.learning_rate import range_test, smooth, suggest
from hf_cifar.recipe.load import load_recipe


@pytest.fixture
def recipe_file(tmp_path, tiny):
    """recipe_file(key=value, ...): the path of a recipe of a tiny ViT that runs in tmp_path/run."""

    def write(**keys):
        output = str(tmp_path / "run")
        return str(write_recipe(tmp_path / "recipe.yaml", tiny("vit"), output_dir=output, **keys))

    return write


@settings(max_examples=50, deadline=None)
@given(losses=st.lists(st.floats(0.01, 100), min_size=1, max_size=40))
def test_smoothing_stays_between_the_least_and_the_largest(losses):
    smoothed = smooth(losses)
    assert len(smoothed) == len(losses) and smoothed[0] == pytest.approx(losses[0])
    assert all(min(losses) - 1e-9 <= value <= max(losses) + 1e-9 for value in smoothed)


def test_the_suggestion_is_where_the_loss_falls_fastest():
    rates = np.logspace(-6, 0, 100).tolist()

    def loss(rate):  # it falls around 1e-3, and rises from 0.1 on
        power = math.log10(rate)
        return 2 - 1.5 / (1 + math.exp(-3 * (power + 3))) + 9 * max(0.0, power + 1)

    suggestion = suggest(rates, [loss(rate) for rate in rates])
    assert 1e-3 < suggestion.steepest < 1e-2  # smoothing comes late
    least = rates[int(np.argmin(suggestion.smoothed))]
    assert suggestion.tenth_of_least == pytest.approx(least / 10)
    with pytest.raises(UserError, match="the loss never fell"):
        suggest(rates, [1 + rate for rate in rates])


class GroupRates(TrainerCallback):
    """The learning rate of each group, before each step."""

    def __init__(self):
        self.steps = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.steps.append([group["lr"] for group in kwargs["optimizer"].param_groups])


@pytest.mark.parametrize("method", ["full", "lora", "partial"])
def test_rates_rise_in_every_group_and_nothing_is_saved(method, recipe_file, tmp_path):
    keys = {"layer_decay": 0.5} if method == "full" else {}
    recipe = load_recipe(recipe_file(method=method, ema_decay=0.9, **keys))
    watcher = GroupRates()
    with trainer_callbacks(watcher):
        result = range_test(recipe, start=1e-5, end=1e-2, steps=12)
    assert len(watcher.steps) == len(result.rates) == len(result.losses) == 12
    assert result.rates == pytest.approx(np.geomspace(1e-5, 1e-2, 12))
    assert [max(rates) for rates in watcher.steps] == pytest.approx(result.rates)
    ratios = {tuple(round(r / max(rates), 9) for r in rates) for rates in watcher.steps}
    assert len(ratios) == 1 and (len(watcher.steps[0]) > 1) == (method == "full")
    assert not (tmp_path / "run").exists()


def test_the_command_writes_a_table_and_a_plot_and_stops_where_the_loss_diverges(
    recipe_file, tmp_path, capsys
):
    path = recipe_file(random_resized_crop_scale=None, horizontal_flip=0)
    assert main.run(["find-lr", path, "--end", "1e4", "--steps", "60", "--start", "1e-4"]) == 0
    output = capsys.readouterr().out
    assert "falls fastest at" in output and f"hf-cifar train {path} --learning_rate" in output
    folder = tmp_path / "run-find-lr"
    with (folder / "find_lr.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert 5 <= len(rows) < 60 and all(math.isfinite(float(row["loss"])) for row in rows)
    assert (folder / "find_lr.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "words",
    [["--start", "0"], ["--start", "1", "--end", "0.1"], ["--steps", "3"], ["--end", "inf"]],
)
def test_bad_input_is_one_line(words, recipe_file, capsys):
    assert main.run(["find-lr", recipe_file(), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("hf-cifar: find-lr: ") and "\n" not in error


def test_a_method_without_a_learning_rate_is_refused(recipe_file, capsys):
    assert main.run(["find-lr", recipe_file(method="linear")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.endswith("find-lr: method: linear has no learning rate")
