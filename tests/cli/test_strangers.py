"""Strangers and drift: evaluate --strangers, calibrate and monitor on a tiny run."""

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from helpers.runs import LABELS, train_into, without_drawing
from transformers import pipeline

from hf_cifar.cli import main
from hf_cifar.data.load import load_split
from hf_cifar.recipe.recipe import Recipe


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> Path:
    """A tiny run with enough validation pictures; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("strangers") / "run"
    keys = {"method": "linear", "max_train_samples": 150, "validation_fraction": 0.1}
    return train_into(folder, tiny("resnet"), max_eval_samples=60, **{**keys}).path


@pytest.fixture
def run(trained, tmp_path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Folders of pictures: the sample's own test pictures from the last on, and grey ones."""
    split = load_split(Recipe(dataset_name="sample"), "test")
    root = tmp_path_factory.mktemp("pictures")
    for name in ("same", "grey", "few", "empty"):
        (root / name).mkdir()
    for number, row in enumerate(split.rows[-60:]):
        picture = split.images.picture(int(row))
        PIL.Image.fromarray(picture).save(root / "same" / f"{number}.png")
        grey = np.full((32, 32, 3), 250 - number % 5, np.uint8)
        PIL.Image.fromarray(grey).save(root / "grey" / f"{number}.png")
    PIL.Image.fromarray(grey).save(root / "few" / "one.png")
    return {path.name: path for path in root.iterdir()}


def call(capfd, *words) -> tuple[int, dict]:
    capfd.readouterr()
    with without_drawing():
        code = main.run([str(word) for word in words])
    return code, json.loads(capfd.readouterr().out)


def predicted(capfd, run: Path, pictures) -> list[list[dict]]:
    capfd.readouterr()
    assert main.run(["predict", str(run), *map(str, pictures), "--json"]) == 0
    return [json.loads(line)["labels"] for line in capfd.readouterr().out.splitlines()]


def test_scores_of_strangers(run, folders, capfd):
    code, result = call(capfd, "evaluate", run, "--strangers", folders["grey"], "--json")
    assert code == 0 and set(result["scores"]) == {"softmax", "energy", "knn", "mahalanobis"}
    assert result["stranger_images"] == 60 and result["known_images"] == 60
    assert result["scores"]["knn"]["auroc"] > 0.8
    assert all(0 <= score["fpr95"] <= 1 for score in result["scores"].values())


def test_a_stranger_set_of_the_models_own_classes_is_warned_of(run, caplog, capfd):
    with caplog.at_level("WARNING", "hf_cifar"):
        call(capfd, "evaluate", run, "--strangers", "sample", "--json")
    assert any("the model knows 10 of their classes" in line for line in caplog.messages)


def test_class_folders_of_the_models_own_classes_are_warned_of(
    run, folders, caplog, capfd, tmp_path
):
    for name in ("Cat", "dog", "tree"):
        (tmp_path / "others" / "train" / name).mkdir(parents=True)
        picture = folders["grey"] / "1.png"
        shutil.copy(picture, tmp_path / "others" / "train" / name)
    with caplog.at_level("WARNING", "hf_cifar"):
        call(capfd, "evaluate", run, "--strangers", tmp_path / "others", "--json")
    assert any("the model knows 2 of their classes (Cat, dog)" in line for line in caplog.messages)


def test_a_calibrated_run_says_none_of_these(run, folders, capfd):
    pictures = [folders["same"] / f"{number}.png" for number in range(20)]
    before = pipeline("image-classification", model=str(run))(str(pictures[0]))
    code, facts = call(capfd, "calibrate", run, "--reject", "1", "--json")
    assert code == 0 and facts["score"] == max(facts["aurocs"], key=facts["aurocs"].get)
    assert json.loads((run / "config.json").read_text())["reject"] == facts
    assert json.loads((run / "metrics.json").read_text())["reject"] == facts
    card = (run / "README.md").read_text()
    assert f'says "none of these" to pictures whose `{facts["score"]}` score' in card
    answers = predicted(capfd, run, pictures)
    rejected = [answer for answer in answers if answer[0]["label"] == "none of these"]
    assert len(rejected) >= 18  # the threshold is the best score of all validation pictures
    for answer in rejected:
        assert 0 <= answer[0]["score"] <= 1
        assert [line["label"] in LABELS for line in answer[1:]] == [True, True, True]
    call(capfd, "calibrate", run, "--reject", "0.0001", "--json")
    answers = predicted(capfd, run, pictures)
    assert sum(answer[0]["label"] == "none of these" for answer in answers) <= 2
    assert pipeline("image-classification", model=str(run))(str(pictures[0])) == before


@pytest.mark.parametrize("calibrated", [False, True])
def test_monitor_ends_with_3_on_drift_and_0_without(calibrated, run, folders, capfd):
    if calibrated:
        call(capfd, "calibrate", run, "--json")
    code, result = call(capfd, "monitor", run, folders["grey"], "--json")
    assert code == 3 and result["drift"] and result["p_value"] < 0.01
    assert Path(result["worst"][0]["picture"]).parent == folders["grey"]
    code, result = call(capfd, "monitor", run, folders["same"], "--json")
    assert code == 0 and not result["drift"] and result["pictures"] == 60
    for name in ("estimated_accuracy", "estimated_accuracy_other_mix", "strangers"):
        assert 0 <= result[name] <= 1


def test_bad_input(run, folders, refused, tmp_path):
    assert "no picture in this folder" in refused("evaluate", run, "--strangers", folders["empty"])
    assert "1 pictures say too little" in refused("monitor", run, folders["few"])
    assert "no folder of a finished run" in refused("calibrate", tmp_path)
    assert "at most 1" in refused("calibrate", run, "--reject", "2")
    assert "nowhere" in refused("monitor", run, "./nowhere")
    assert "no picture in this folder" in refused("monitor", run, folders["empty"])
    assert "above 0" in refused("monitor", run, folders["same"], "--p", "0")
    assert "above 0" in refused("calibrate", run, "--reject", "0")
    for model in (folders["empty"], "./nowhere"):
        for words in (("monitor", model, folders["same"]), ("evaluate", model)):
            more = ("--strangers", folders["grey"]) if words[0] == "evaluate" else ()
            assert str(model) in refused(*words, *more)


def test_two_classes_and_few_validation_pictures(tiny, folders, refused, tmp_path):
    few = train_into(tmp_path / "few", tiny("resnet"), method="linear", max_eval_samples=10)
    assert "10 validation pictures say too little" in refused("calibrate", few.path)
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "two" / name).mkdir(parents=True)
        for number in range(40):
            pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(tmp_path / "two" / name / f"{number}.png")
    keys = {"dataset_name": str(tmp_path / "two"), "validation_fraction": 0.4}
    pair = train_into(
        tmp_path / "pair", tiny("resnet"), method="linear", max_train_samples=None, **keys
    )
    assert "with two classes none can be left out" in refused("calibrate", pair.path)


def test_a_run_without_validation_pictures(tiny, folders, refused, tmp_path):
    path = train_into(
        tmp_path / "all", tiny("resnet"), method="linear", validation_fraction=0.0
    ).path
    for words in (("monitor", path, folders["same"]), ("calibrate", path)):
        assert "validation_fraction above 0" in refused(*words)
