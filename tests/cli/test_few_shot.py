"""`few-shot` on the packaged sample with a tiny backbone."""

import json

import numpy as np
import pytest
import torch
from helpers.runs import held_out_images, pipeline_probabilities, without_drawing

from hf_cifar.cli import main
from hf_cifar.data.load import load_split
from hf_cifar.evaluation.backbone_recipe import backbone_recipe
from hf_cifar.recipe.load import load_recipe
from hf_cifar.runs.run import Run

SMALL = ("--dataset_name", "sample", "--max_train_samples", "120", "--max_eval_samples", "40")


def test_results_and_a_run_that_pipeline_loads(tiny, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["few-shot", str(tiny("resnet")), *SMALL, "--shots", "1,4", "--draws", "2"]
    words += ["--unlabelled", "--save", "4", "--output_dir", "run", "--json"]
    with without_drawing():
        assert main.run(words) == 0
    result = json.loads(capfd.readouterr().out)
    rows = {(row["shots"], row["method"]): row for row in result["results"]}
    methods = {"means", "knn", "logistic", "labels", "refined", "guarded"}
    assert set(rows) == {(shots, method) for shots in (1, 4) for method in methods}
    assert all(row["low"] <= row["mean"] <= row["high"] for row in rows.values())
    assert rows[1, "guarded"] == rows[1, "labels"] | {"method": "guarded"}  # off at one shot
    folder = tmp_path / "runs" / f"{tiny('resnet').name}-few-shot"
    assert json.loads((folder / "few_shot.json").read_text())["draws"] == 2
    assert (folder / "few_shot.png").is_file()

    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    images, labels = held_out_images(Run(tmp_path / "run", metrics))
    answers = pipeline_probabilities(tmp_path / "run", images)
    assert abs((answers.argmax(1) == labels).mean() - metrics["test_accuracy"]) <= 1 / 40
    assert metrics["few_shot"]["shots"] == 4 and metrics["train_samples"] == 40
    card = (tmp_path / "run" / "README.md").read_text()
    assert "the labels of 4 images of each class, draw 0 with seed 0" in card
    assert "Over 2 draws the mean test accuracy" in card
    recipe = load_recipe(str(tmp_path / "run"))
    assert len(load_split(recipe, "train")) == 40


def test_lora_trains_on_the_images_of_each_draw(tiny, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["few-shot", str(tiny("vit")), *SMALL, "--shots", "2,10", "--draws", "1", "--lora"]
    results = []
    for _ in range(2):
        with without_drawing():
            assert main.run([*words, "--json"]) == 0
        results.append(json.loads(capfd.readouterr().out)["results"])
    rows = [row for row in results[0] if row["method"] == "lora"]
    assert [row["shots"] for row in rows] == [10] and len(rows[0]["accuracies"]) == 1
    assert results[0] == results[1]
    assert [(row["shots"], row["method"]) for row in results[0]] == sorted(
        (row["shots"], row["method"]) for row in results[0]
    )


def test_lora_starts_at_logistic_regression_on_the_images_of_the_draw(tiny, tmp_path):
    from hf_cifar.evaluation.few_shot import draw_rows, fit_heads, load_few_shot_data
    from hf_cifar.runs.few_shot_lora import lora_setup

    keys = {"dataset_name": "sample", "max_train_samples": 120, "max_eval_samples": 20, "seed": 5}
    recipe = backbone_recipe(str(tiny("vit")), keys | {"bf16": False})
    study = load_few_shot_data(recipe, [10], False)
    rows = draw_rows(study, 10, 3)
    setup = lora_setup(study, 10, 3, str(tmp_path))
    assert setup.datasets.train.split.rows.tolist() == study.data.train.rows[rows].tolist()
    heads = fit_heads(study, rows, torch.from_numpy(study.data.train.labels)[rows])
    setup.model.eval()
    batch = setup.datasets.evaluation["test"]
    with torch.inference_mode():
        inputs = batch.model_inputs(batch.__getitems__(list(range(20))), torch.device("cpu"))
        logits = setup.model(pixel_values=inputs["pixel_values"]).logits
    expected = heads["logistic"].linear.logits(study.test)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_draws_are_nested_and_balanced(tiny):
    from hf_cifar.evaluation.few_shot import draw_rows, load_few_shot_data

    keys = {"dataset_name": "sample", "max_train_samples": 120, "max_eval_samples": 20}
    study = load_few_shot_data(backbone_recipe(str(tiny("resnet")), keys), [5], False)
    draws = [
        [set(draw_rows(study, shots, draw).tolist()) for shots in (1, 2, 5)] for draw in (0, 1)
    ]
    for one, two, five in draws:
        assert one < two < five
        labels = study.data.train.labels[sorted(five)]
        assert np.bincount(labels).tolist() == [5] * 10
    assert draws[0][2] != draws[1][2]


def test_a_run_is_a_backbone_with_its_own_data(tiny, train):
    run = train("run", tiny("vit"), method="linear", seed=3)
    recipe = backbone_recipe(str(run.path), {})
    assert (recipe.dataset_name, recipe.max_train_samples, recipe.seed) == ("sample", 40, 3)
    assert recipe.model_name_or_path == str(run.path) and recipe.method == "full"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--shots", "50", *SMALL), ("--shots 50", "12 training images")),
        (("--shots", "5,1", *SMALL), ("--shots", "rise")),
        (("--shots", "0", *SMALL), ("--shots", "from 1 on")),
        (("--draws", "0", *SMALL), ("--draws", "from 1 on")),
        (("--shots", "1", "--save", "90", *SMALL), ("--shots 90",)),
        (("--shots", "1", "--no_such_key", "3"), ("no_such_key",)),
        (("--shots", "1,5", "--lora", *SMALL), ("--lora", "from 10 images a class on", "1, 5")),
    ],
)
def test_bad_input(words, parts, tiny, refused):
    line = refused("few-shot", tiny("resnet"), *words)
    assert all(part in line for part in parts), line


def test_one_class_is_refused(tiny, refused, tmp_path):
    import PIL.Image

    for split in ("train", "test"):
        (tmp_path / "data" / split / "only").mkdir(parents=True)
        PIL.Image.new("RGB", (32, 32), "red").save(tmp_path / "data" / split / "only" / "1.png")
    line = refused("few-shot", tiny("resnet"), "--dataset_name", tmp_path / "data", "--shots", "1")
    assert "only one class" in line


def test_pictures_without_labels_are_refused(tiny, refused, tmp_path):
    import PIL.Image

    (tmp_path / "plain").mkdir()
    PIL.Image.new("RGB", (32, 32), "red").save(tmp_path / "plain" / "1.png")
    words = ["few-shot", tiny("resnet"), "--dataset_name", tmp_path / "plain", "--shots", "1"]
    assert "no pictures in class folders" in refused(*words)
    (tmp_path / "file").write_text("")
    words = ["few-shot", tiny("resnet"), *SMALL, "--shots", "1", "--draws", "1", "--out"]
    assert "--out" in refused(*words, tmp_path / "file")
