"""The learning-rate range test: rates rise as told, groups keep their ratios, and what it says is
where the loss falls.
"""

import csv
import math

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from test_run import BASE

from hf_cifar.cli import main
from hf_cifar.errors import UserError
from hf_cifar.planning.learning_rate import range_test, smooth, suggest
from hf_cifar.recipe.load import load_recipe
from hf_cifar.training.trainer import CifarTrainer


def recipe_file(folder, model, **keys):
    path = folder / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(
            BASE | {"model_name_or_path": str(model), "output_dir": str(folder / "run")} | keys
        )
    )
    return str(path)


@settings(max_examples=50, deadline=None)
@given(losses=st.lists(st.floats(0.01, 100), min_size=1, max_size=40))
def test_smoothing_stays_between_the_least_and_the_most(losses):
    found = smooth(losses)
    assert len(found) == len(losses) and found[0] == pytest.approx(losses[0])
    assert all(min(losses) - 1e-9 <= s <= max(losses) + 1e-9 for s in found)


def test_the_suggestion_is_where_the_loss_falls_fastest():
    rates = np.logspace(-6, 0, 100).tolist()
    losses = [
        2 - 1.5 / (1 + math.exp(-3 * (math.log10(r) + 3))) + max(0.0, math.log10(r) + 1) * 9
        for r in rates
    ]
    found = suggest(rates, losses)
    assert 1e-3 < found.steepest < 1e-2  # the fall is at 1e-3, and smoothing comes late
    assert found.tenth_of_least == pytest.approx(rates[int(np.argmin(found.smoothed))] / 10)
    with pytest.raises(UserError, match="the loss never fell"):
        suggest(rates, [1 + r for r in rates])


@pytest.mark.parametrize("method", ["full", "lora", "partial", "linear"])
def test_rates_rise_in_every_group_and_nothing_is_kept(method, tiny, tmp_path, monkeypatch):
    seen = []
    original = CifarTrainer.training_step

    def training_step(self, *args, **kwargs):
        seen.append([group["lr"] for group in self.optimizer.param_groups])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(CifarTrainer, "training_step", training_step)
    keys = {"layer_decay": 0.5} if method == "full" else {}
    recipe = load_recipe(recipe_file(tmp_path, tiny("vit"), method=method, ema_decay=0.9, **keys))
    found = range_test(recipe, start=1e-5, end=1e-2, steps=12)
    assert len(seen) == len(found.rates) == len(found.losses) == 12
    top = max(range(len(seen[0])), key=lambda g: seen[0][g])
    assert [rates[top] for rates in seen] == pytest.approx(found.rates)
    assert found.rates == pytest.approx(np.geomspace(1e-5, 1e-2, 12))
    ratios = {tuple(round(r / rates[top], 9) for r in rates) for rates in seen}
    assert len(ratios) == 1 and (len(seen[0]) > 1) == (method == "full")
    assert not (tmp_path / "run").exists()


def test_the_command_writes_a_table_and_a_plot_and_stops_where_the_loss_breaks_away(
    tiny, tmp_path, capsys
):
    path = recipe_file(tmp_path, tiny("vit"), random_resized_crop_scale=None, horizontal_flip=0)
    assert main.run(["find-lr", path, "--end", "1e4", "--steps", "60", "--start", "1e-4"]) == 0
    said = capsys.readouterr().out
    assert "falls fastest at" in said and f"hf-cifar train {path} --learning_rate" in said
    folder = tmp_path / "run-find-lr"
    with (folder / "find_lr.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert 5 <= len(rows) < 60 and all(math.isfinite(float(row["loss"])) for row in rows)
    assert (folder / "find_lr.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "words",
    [["--start", "0"], ["--start", "1", "--end", "0.1"], ["--steps", "3"], ["--end", "inf"]],
)
def test_bad_input_is_one_line(words, tiny, tmp_path, capsys):
    assert main.run(["find-lr", recipe_file(tmp_path, tiny("vit")), *words]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("hf-cifar: find-lr: --") and "\n" not in said
