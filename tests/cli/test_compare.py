"""`compare` on the packaged sample: a race of tiny backbones, and finished runs."""

import json

import pytest
from helpers.runs import train_into, without_drawing

from hf_cifar.cli import main
from hf_cifar.recipe.load import load_recipe

SMALL = ("--dataset_name", "sample", "--max_train_samples", "120", "--max_eval_samples", "60")


@pytest.fixture(scope="module")
def run_folders(tmp_path_factory, tiny):
    """Folders of four runs: two on the same test images, one on fewer, one without predictions."""
    folder = tmp_path_factory.mktemp("runs")
    linear = {"method": "linear", "max_eval_samples": 30}
    train_into(folder / "one", tiny("vit"), **linear)
    train_into(folder / "two", tiny("resnet"), seed=1, **linear)
    train_into(folder / "fewer", tiny("vit"), **linear | {"max_eval_samples": 20})
    train_into(folder / "blind", tiny("vit"), **linear)
    (folder / "blind" / "predictions.parquet").unlink()
    return folder


def test_a_race(tiny, tmp_path, capfd):
    models = [str(tiny("resnet")), str(tiny("vit"))]
    words = ["compare", *models, *SMALL, "--minutes", "0.1", "--methods", "linear,full"]
    with without_drawing():
        assert main.run([*words, "--json", "--out", str(tmp_path / "out")]) == 0
    result = json.loads(capfd.readouterr().out)
    rows = result["candidates"]
    pairs = {(row["model"], row["method"]) for row in rows}
    assert pairs == {(model, method) for model in models for method in ("linear", "full")}
    assert [row["rounds"] for row in rows] == [2, 2, 1, 1]  # of four candidates, two went on
    for row in rows:
        assert row["parameters"] > 1000 and row["flops"] > 1000 and row["milliseconds"] > 0
        assert row["memory_bytes"] > 4 * row["parameters"] and row["images_per_second"] > 0
        assert row["accuracy"] * result["validation_images"] % 1 == pytest.approx(0)
        assert (row["feature_distance"] > 0) == (row["method"] == "full")
        assert (row["steps"] is None) == (row["method"] == "linear")
    best, choice = rows[0], result["choice"]
    assert (choice["model"], choice["method"]) == (best["model"], best["method"])
    assert choice["reason"].startswith(f"Take {best['model']} with {best['method']}: ")
    assert result["frozen_choice"]["model"] in models and result["validation_images"] == 60
    out = tmp_path / "out"
    assert json.loads((out / "compare.json").read_text()) == result
    assert (out / "compare.png").is_file()
    winner = load_recipe(str(out / "winner.yaml"))
    assert (winner.model_name_or_path, winner.method) == (best["model"], best["method"])
    assert winner.max_train_samples == 120 and winner.validation_fraction == 0.02

    keys = ["--max_steps", "1", "--output_dir", str(tmp_path / "run"), "--disable_tqdm"]
    with without_drawing():
        assert main.run(["train", str(out / "winner.yaml"), *keys]) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_the_table_and_a_limit(tiny, tmp_path, capfd):
    words = ["compare", str(tiny("resnet")), str(tiny("vit")), *SMALL, "--minutes", "0.05"]
    words += ["--methods", "linear", "--max-parameters", "33K", "--out", str(tmp_path)]
    assert main.run(words) == 0
    out = capfd.readouterr().out
    assert (
        f"{tiny('resnet')}: took no part: 40,474 parameters" in out and "(missed by 22.6 %)" in out
    )
    assert "frozen features alone would have chosen" in out
    assert f"Take {tiny('vit')} with linear" in out
    assert (tmp_path / "compare.png").stat().st_size > 10_000


def test_finished_runs(run_folders, capfd):
    runs = [str(run_folders / name) for name in ("one", "two")]
    assert main.run(["compare", *runs, "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    (pair,) = result["pairs"]
    accuracies = [run["accuracy"] for run in result["runs"]]
    assert pair["difference"] == pytest.approx(accuracies[0] - accuracies[1])
    assert pair["low"] <= pair["difference"] <= pair["high"] and 0 < pair["p_value"] <= 1
    assert main.run(["compare", *runs]) == 0
    assert result["sentence"] in capfd.readouterr().out


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("one", "fewer"), ("30 images", "20")),
        (("one", "blind"), ("blind", "predictions.parquet")),
        (("one",), ("two or more",)),
        (("one", "one"), ("two or more",)),
        (("one", "quickstart"), ("one is a finished run", "quickstart is none")),
        (("one", "two", "--minutes", "3"), ("--minutes", "race")),
    ],
)
def test_runs_that_are_refused(run_folders, refused, names, parts):
    words = [run_folders / name if (run_folders / name).is_dir() else name for name in names]
    line = refused("compare", *words)
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--max-parameters", "10"), ("no backbone meets the limits", "nearest is", "parameters")),
        (("--max-memory", "1KB"), ("nearest is", "MB, --max-memory 1000")),
        (("--max-memory", "much"), ("--max-memory", "above 0")),
        (("--minutes", "0.00001"), ("--minutes 1e-05", "one step of each")),
        (("--minutes", "0"), ("--minutes", "above 0")),
        (("no/such/folder",), ("no/such/folder",)),
        (("--methods", "full,best"), ("best", "lora")),
        (("--methods", "full,full"), ("full stands twice",)),
        (("--method", "full"), ("--methods",)),
        (("--max_steps", "3"), ("max_steps", "--minutes")),
        (("--validation_fraction", "0"), ("validation_fraction",)),
        (("--no_such_key", "3"), ("no_such_key",)),
    ],
)
def test_bad_input(words, parts, tiny, refused, tmp_path):
    line = refused("compare", tiny("resnet"), *words, *SMALL, "--out", tmp_path)
    assert all(part in line for part in parts), line
