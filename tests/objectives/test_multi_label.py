"""Several labels a picture: what is read, learned, measured, saved and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import torch
from helpers.label_sets import COLOURS, colour_picture, write_colour_folder
from helpers.runs import CHECKPOINT_EVERY_3, assert_same_run, write_recipe
from helpers.watching import stopped_in_step
from torch.nn import functional as F
from transformers import pipeline

from hf_cifar.cli import main
from hf_cifar.errors import UserError
from hf_cifar.objectives.multi_label import MultiLabel
from hf_cifar.recipe.load import load_recipe
from hf_cifar.runs.run import Run

KEYS: dict[str, Any] = {
    "objective": "multi_label",
    "max_train_samples": None,
    "max_eval_samples": None,
    "validation_fraction": 0.2,
    "random_resized_crop_scale": None,
}


@pytest.fixture
def colours(tmp_path: Path) -> tuple[Path, list[list[str]]]:
    """A folder of 96 pictures with a labels.csv, and the labels of each picture."""
    return tmp_path / "colours", write_colour_folder(tmp_path / "colours", 96)


@pytest.fixture
def learn(
    train: Callable[..., Run], tiny: Callable[[str], Path], colours: tuple[Path, list[list[str]]]
) -> Callable[..., Run]:
    """learn("run", key=value, ...): a tiny run on the colours, in tmp_path/run."""

    def start(name: str, family: str = "vit", **keys: Any) -> Run:
        return train(name, tiny(family), dataset_name=str(colours[0]), **KEYS | keys)

    return start


@pytest.fixture
def objective(tmp_path: Path, colours: tuple[Path, list[list[str]]]) -> Callable[..., MultiLabel]:
    """objective(key=value, ...): the objective of a recipe on the colours."""

    def make(**keys: Any) -> MultiLabel:
        values = KEYS | {"dataset_name": str(colours[0])} | keys
        return MultiLabel(load_recipe(str(write_recipe(tmp_path / "a.yaml", Path("no"), **values))))

    return make


def test_it_learns_and_pipeline_predict_and_evaluate_say_the_same(
    learn: Callable[..., Run],
    colours: tuple[Path, list[list[str]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = learn("run", num_train_epochs=12, learning_rate=0.01)
    metrics = run.metrics
    assert metrics["test_map"] > 0.95 and metrics["test_auroc_macro"] > 0.95
    assert metrics["test_f1_micro"] > 0.8 and metrics["test_accuracy"] > 0.5
    assert metrics["labels"] == COLOURS and metrics["test_samples"] == 19
    config = json.loads((run.path / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert set(config["label2id"]) == set(COLOURS)

    classify = pipeline("image-classification", model=str(run.path))
    picture = colours[0] / "000.png"
    answers = {answer["label"]: answer["score"] for answer in classify(str(picture))}
    with torch.inference_mode():
        pixels = classify.image_processor(PIL.Image.open(picture), return_tensors="pt")
        logits = classify.model(**pixels).logits[0]
    expected = dict(zip(COLOURS, logits.sigmoid().tolist(), strict=True))
    assert answers == pytest.approx(expected, abs=1e-6)

    assert main.run(["predict", str(run.path), str(picture), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    said = {answer["label"]: answer["score"] for answer in json.loads(line)["labels"]}
    assert said == pytest.approx(expected, abs=1e-5)
    out = tmp_path / "answers.parquet"
    assert main.run(["predict", str(run.path), str(picture), "--out", str(out)]) == 0
    capsys.readouterr()
    (row,) = pq.read_table(out).to_pylist()
    assert row["score"] == pytest.approx(max(expected.values()), abs=1e-5)

    assert main.run(["evaluate", str(run.path), "--json", "--precision", "fp32"]) == 0
    again = json.loads(capsys.readouterr().out)
    for name in ("test_map", "test_f1_macro", "test_accuracy", "test_auroc_macro"):
        assert again[name] == pytest.approx(metrics[name], abs=1e-9), name
    assert main.run(["evaluate", str(run.path)]) == 0
    assert "test_map" in capsys.readouterr().out


def test_predictions_and_card_show_each_label(
    learn: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    import datasets

    run = learn("run", tta="flip", num_train_epochs=1)
    table = datasets.Dataset.from_parquet(
        str(run.path / "predictions.parquet"), cache_dir=str(run.path.parent / "cache")
    )
    assert len(table) == run.metrics["test_samples"]
    names = table.features["labels"].feature.names
    assert names == COLOURS
    truth = np.array([[number in row["labels"] for number in range(3)] for row in table])
    chance = np.array([row["probabilities"] for row in table])
    answers = np.array([[number in row["predictions"] for number in range(3)] for row in table])
    assert np.array_equal(answers, chance >= 0.5)
    assert run.metrics["test_accuracy"] == (answers == truth).all(1).mean()
    assert run.metrics["test_flip_map"] > 0
    card = (run.path / "README.md").read_text()
    assert "any number of which a picture can have" in card
    assert "| Mean average precision |" in card and "| AUROC (macro) |" in card
    for name, row in run.metrics["test_per_label"].items():
        assert f"| {name} | {row['samples']} |" in card
    assert (run.path / "plots" / "learning_curves.png").is_file()

    # Commands about classes that exclude each other refuse the run.
    assert main.run(["calibrate", str(run.path)]) == 2
    assert "gives each label a probability of its own" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        ("resnet", {"mixup_alpha": 0.4, "label_smoothing_factor": 0.1}),
        ("resnet", {"method": "partial"}),
        ("vit", {"method": "lora", "metric_for_best_model": "map"}),
    ],
)
def test_a_stopped_run_resumes_to_the_same_bits(
    learn: Callable[..., Run], family: str, keys: dict[str, Any]
) -> None:
    keys = CHECKPOINT_EVERY_3 | {"num_train_epochs": 1} | keys  # of 7 steps
    whole = learn("whole", family, **keys)
    with stopped_in_step(5):
        learn("stopped", family, **keys)
    assert_same_run(whole, learn("stopped", family, **keys))


def test_the_loss_is_that_of_transformers(objective: Callable[..., MultiLabel]) -> None:
    learned = objective()
    labels = torch.from_numpy(learned.data.train.labels[:8])
    logits = torch.randn(8, 3)
    targets = torch.from_numpy(learned.members)[labels].float()
    expected = F.binary_cross_entropy_with_logits(logits, targets)
    assert torch.allclose(learned.loss({"logits": logits}, labels), expected)
    accumulated = learned.loss({"logits": logits}, labels, torch.tensor(32))
    assert torch.allclose(accumulated, expected / 4)
    shares = F.one_hot(labels, len(learned.members)).float()
    mixed = 0.25 * shares + 0.75 * shares.flip(0)
    expected = F.binary_cross_entropy_with_logits(logits, 0.25 * targets + 0.75 * targets.flip(0))
    assert torch.allclose(learned.loss({"logits": logits}, mixed), expected)


def test_smoothing_is_for_training_only(objective: Callable[..., MultiLabel]) -> None:
    learned = objective(label_smoothing_factor=0.2)
    labels, logits = torch.from_numpy(learned.data.train.labels[:8]), torch.randn(8, 3)
    targets = torch.from_numpy(learned.members)[labels].float()
    smooth = F.binary_cross_entropy_with_logits(logits, targets * 0.8 + 0.1)
    assert torch.allclose(learned.loss({"logits": logits}, labels), smooth)
    with torch.no_grad():
        plain = F.binary_cross_entropy_with_logits(logits, targets)
        assert torch.allclose(learned.loss({"logits": logits}, labels), plain)


def test_rare_sets_of_labels_do_not_inflate_a_cut(tmp_path: Path) -> None:
    folder, random = tmp_path / "many", np.random.default_rng(0)
    folder.mkdir()
    lines = ["file_name,label"]
    for number in range(200):
        labels = [f"l{label}" for label in np.flatnonzero(random.random(12) < 0.4)]
        colour_picture([], random).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{'|'.join(labels) or '|'}")
    (folder / "labels.csv").write_text("\n".join(lines))
    keys = KEYS | {"dataset_name": str(folder), "test_fraction": 0.2, "validation_fraction": 0.1}
    recipe = load_recipe(str(write_recipe(tmp_path / "a.yaml", Path("no"), **keys)))
    data = MultiLabel(recipe).data
    assert data.test is not None and data.validation is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (144, 16, 40)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "b", "a", "b"] * 3, "exactly one label, .*set `objective: classification`"),
        (["|"] * 12, "no picture has a label"),
    ],
)
def test_labels_that_are_not_several_are_refused(
    tmp_path: Path, labels: list[str], message: str
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(len(labels)):
        PIL.Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / f"{number}.png")
    rows = [f"{number}.png,{label}" for number, label in enumerate(labels)]
    (folder / "labels.csv").write_text("\n".join(["file_name,label", *rows]))
    values = KEYS | {"dataset_name": str(folder)}
    recipe = load_recipe(str(write_recipe(tmp_path / "a.yaml", Path("no"), **values)))
    with pytest.raises(UserError, match=message) as error:
        MultiLabel(recipe)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"method": "linear"}, "linear can't train `objective: multi_label`; choose full, partial"),
        ({"temperature_scaling": True}, "temperature_scaling: fits one temperature"),
        ({"monitor_features": True}, "monitor_features: compares pictures"),
        ({"metric_for_best_model": "nll"}, "nll can't choose a checkpoint; choose accuracy, map"),
    ],
)
def test_keys_without_a_meaning_are_one_line(
    learn: Callable[..., Run], keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        learn("run", **keys)
    assert "\n" not in str(error.value)
