"""`hf-cifar stress`: figures, published files, a second model, the card of a run, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command import hf_cifar
from helpers.runs import LABELS, without_drawing

from hf_cifar.augmentation.corruptions import corrupt
from hf_cifar.cli.main import run as command
from hf_cifar.data.load import load_split
from hf_cifar.errors import UserError
from hf_cifar.evaluation.classifier import load_classifier
from hf_cifar.evaluation.evaluate import evaluate
from hf_cifar.evaluation.stress import (
    Options,
    parse_corruptions,
    parse_severities,
    published_files,
    relative_mean_error,
    stress,
)
from hf_cifar.evaluation.target_data import labels_of_model
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.runs.run import Run

SMALL = {"max_eval_samples": "40"}


def sample(count: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [n, H, W, 3] and labels of the sample's first test images."""
    split = load_split(Recipe(dataset_name="sample"), "test")
    pixels = [split.images.picture(int(row)) for row in split.rows[:count]]
    return np.stack(pixels), split.labels[:count]


@pytest.fixture
def finished(tiny: Callable[[str], Path], train: Callable[..., Run]) -> Run:
    return train("run", tiny("resnet"))


def test_accuracy_is_that_of_the_corrupted_pictures(finished: Run) -> None:
    options = Options(("fog", "contrast"), (2, 5), precision="fp32", batch_size=7)
    result, pictures = stress(str(finished.path), None, SMALL, options, None)
    classifier = load_classifier(str(finished.path))
    split = load_split(Recipe(dataset_name="sample", max_eval_samples=40), "test")
    images = split.images.batch(split.rows)
    assert isinstance(images, torch.Tensor)
    for name in ("fog", "contrast"):
        for severity in (2, 5):
            damaged = corrupt(images, name, severity, torch.from_numpy(split.rows))
            logits = classifier.model(pixel_values=classifier.transforms.evaluate(damaged)).logits
            right = (logits.argmax(1).numpy() == split.labels).mean()
            assert result["corruptions"][name][str(severity)] == pytest.approx(right)
    accuracies = [a for values in result["corruptions"].values() for a in values.values()]
    assert result["mean_error"] == pytest.approx(1 - np.mean(accuracies))
    assert result["images"] == 40 and len(pictures) == len(result["worst"])
    for fact, picture in zip(result["worst"], pictures, strict=True):
        row = torch.tensor([fact["row"]])
        damaged = corrupt(
            split.images.batch(row.numpy()), fact["corruption"], fact["severity"], row
        )
        assert np.array_equal(picture, damaged[0].permute(1, 2, 0).numpy())
        assert fact["label"] != fact["prediction"]


def test_clean_is_what_evaluate_says(finished: Run) -> None:
    options = Options(("brightness",), (1,), precision="fp32")
    result, _ = stress(str(finished.path), "sample", {}, options, None)
    expected = evaluate(str(finished.path), "sample", "test", 128, "fp32", "none")
    assert result["clean"] == pytest.approx(expected["test_accuracy"])
    assert result["nll"]["clean"] == pytest.approx(expected["test_nll"])
    assert result["ece"]["clean"] == pytest.approx(expected["test_ece"])


def test_a_second_model_is_measured_on_the_same_pictures(finished: Run) -> None:
    options = Options(("fog", "saturate"), (3,), precision="fp32")
    result, _ = stress(str(finished.path), None, SMALL, options, str(finished.path))
    assert result["against"]["corruptions"] == result["corruptions"]
    assert result["against"]["relative_mean_error"] == 1


def test_the_relative_mean_error_is_a_mean_of_ratios() -> None:
    first = {"corruptions": {"fog": {"1": 0.8, "2": 0.6}, "snow": {"1": 0.5, "2": 0.5}}}
    second = {"corruptions": {"fog": {"1": 0.6, "2": 0.2}, "snow": {"1": 0.75, "2": 0.75}}}
    first["corruptions"]["saturate"] = second["corruptions"]["saturate"] = {"1": 0.1, "2": 0.1}
    assert relative_mean_error(first, second) == pytest.approx((0.6 / 1.2 + 1.0 / 0.5) / 2)


def test_published_files_take_the_place_of_computed_corruptions(
    finished: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    pixels, labels = sample(20)
    dark = [(pixels * share).astype(np.uint8) for share in (1, 0.8, 0.6, 0.4, 0)]
    np.save(folder / "brightness.npy", np.concatenate(dark))
    np.save(folder / "labels.npy", np.tile(labels, 5).astype(np.uint8))
    assert list(published_files(str(folder))) == ["brightness"]
    options = Options(("brightness", "fog"), (1, 5), precision="fp32")
    result, _ = stress(str(finished.path), str(folder), {}, options, None)
    assert result["clean"] is None and list(result["left_out"]) == ["fog"]
    classifier = load_classifier(str(finished.path))
    for severity, images in (("1", dark[0]), ("5", dark[4])):
        batch = torch.from_numpy(images).permute(0, 3, 1, 2)
        logits = classifier.model(pixel_values=classifier.transforms.evaluate(batch)).logits
        right = (logits.argmax(1).numpy() == labels).mean()
        assert result["corruptions"]["brightness"][severity] == pytest.approx(right)


def test_numpy_test_sets_are_data_for_every_command(finished: Run, tmp_path: Path) -> None:
    pixels, labels = sample(30)
    np.save(tmp_path / "cifar10.1_v6_data.npy", pixels)
    np.save(tmp_path / "cifar10.1_v6_labels.npy", labels.astype(np.int32))
    name = str(tmp_path / "cifar10.1_v6_data.npy")
    split = load_split(Recipe(dataset_name=name), "test")
    assert split.images.label_names == LABELS and np.array_equal(split.labels, labels)
    assert np.array_equal(split.images.picture(3), pixels[3])
    options = Options(("fog",), (1,), precision="fp32")
    result, _ = stress(str(finished.path), name, {}, options, None)
    assert result["images"] == 30 and 0 <= result["clean"] <= 1


def test_a_run_gets_figures_plots_and_a_part_of_its_card(finished: Run) -> None:
    before = json.loads((finished.path / "metrics.json").read_text())
    words = ["--max_eval_samples", "20", "--corruptions", "fog,jpeg_compression", "--severity"]
    with without_drawing():
        code = command(["stress", str(finished.path), *words, "1-2", "--precision", "fp32"])
    assert code == 0
    after = json.loads((finished.path / "metrics.json").read_text())
    stressed = after.pop("stress")
    assert after == before and list(stressed["corruptions"]) == ["fog", "jpeg_compression"]
    card = (finished.path / "README.md").read_text()
    assert "## Corrupted pictures" in card and "| jpeg compression |" in card
    assert "plots/stress_accuracy.png" in card and "plots/confusion_matrix.png" in card
    listed = json.loads((finished.path / ".hf_cifar.json").read_text())["files"]
    assert {"plots/stress_accuracy.png", "plots/stress_severity.png"} <= set(listed)
    assert not (finished.path / ".lock").exists()


def test_json_is_one_object_and_another_model_gets_a_folder(
    tiny: Callable[[str], Path], finished: Run, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    finished_files = ("config.json", "model.safetensors", "preprocessor_config.json")
    model.mkdir()
    for name in finished_files:
        (model / name).write_bytes((finished.path / name).read_bytes())
    words = ["--dataset_name", "sample", "--max_eval_samples", 20, "--corruptions", "contrast"]
    done = hf_cifar("stress", model, *words, "--out", tmp_path / "out", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"clean", "corruptions", "mean_error"} <= set(result)
    assert list(result["corruptions"]["contrast"]) == ["1", "2", "3", "4", "5"]
    assert json.loads((tmp_path / "out" / "stress.json").read_text()) == result
    assert (tmp_path / "out" / "plots" / "stress_accuracy.png").stat().st_size > 5000


def test_severities_and_names_as_people_write_them() -> None:
    assert parse_severities("3") == [3] and parse_severities("1,5,3") == [1, 3, 5]
    assert parse_severities("2-4") == [2, 3, 4]
    assert parse_corruptions("glass-blur, fog,fog") == ["glass_blur", "fog"]
    assert len(parse_corruptions(None)) == 15 and len(parse_corruptions("all")) == 19
    for text in ("0", "6", "1-9", "", "a", "1,,2", "12", "5-1", "1-"):
        with pytest.raises(UserError, match="--severity"):
            parse_severities(text)
    with pytest.raises(UserError, match="no 'rain'"):
        parse_corruptions("fog,rain")


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"data": (9, 32, 32, 3), "labels": (8,)}, "9 images .* 8 labels"),
        ({"data": (9, 3, 32, 32), "labels": (9,)}, r"uint8 \[N, H, W, 3\]"),
        ({"data": (9, 32, 32, 3), "labels": (9, 1)}, "whole numbers"),
        ({"data": (9, 32, 32, 3)}, "the labels are missing"),
    ],
)
def test_numpy_files_that_do_not_fit_are_refused(
    arrays: dict[str, tuple[int, ...]], says: str, tmp_path: Path
) -> None:
    for name, shape in arrays.items():
        np.save(tmp_path / f"new_{name}.npy", np.zeros(shape, np.uint8))
    with pytest.raises(UserError, match=says):
        load_split(Recipe(dataset_name=str(tmp_path / "new_data.npy")), "test")


def test_pickles_and_damaged_numpy_files_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.zeros(3, np.uint8))
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "y.npy").write_bytes(b"\x93NUMPY\x01\x00")
    (tmp_path / "z.npy").write_bytes(b"")
    for name in ("x", "y", "z"):
        with pytest.raises(UserError, match="can't be read"):
            load_split(Recipe(dataset_name=str(tmp_path / f"{name}.npy")), "test")


def test_keys_of_training_and_labels_that_match_nothing_are_refused(
    finished: Run, tmp_path: Path
) -> None:
    options = Options(("fog",), (1,))
    with pytest.raises(UserError, match="only keys of the data"):
        stress(str(finished.path), None, {"learning_rate": "1"}, options, None)
    for name in ("zebra", "gnu"):
        (tmp_path / "animals" / "test" / name).mkdir(parents=True)
        (tmp_path / "animals" / "train" / name).mkdir(parents=True)
        for split in ("train", "test"):
            from PIL import Image

            Image.new("RGB", (8, 8)).save(tmp_path / "animals" / split / name / "1.png")
    with pytest.raises(UserError, match="match none of the model's"):
        stress(str(finished.path), str(tmp_path / "animals"), {}, options, None)


def test_labels_are_matched_both_ways(finished: Run) -> None:
    split = load_split(Recipe(dataset_name="sample"), "test")
    numbered = [f"LABEL_{number}" for number in range(10)]
    assert np.array_equal(labels_of_model(numbered, split), split.labels)
    more = ["zebra", *reversed(LABELS)]  # data may lack classes that the model knows
    assert np.array_equal(labels_of_model(more, split), 10 - split.labels)
    given = {"gnu": "dog"}
    others = [*LABELS[:5], "gnu", *LABELS[6:]]
    assert np.array_equal(labels_of_model(others, split, given), split.labels)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--corruptions", "fog,rain"], "there is no 'rain'"),
        (["--severity", "6"], "--severity: write 1 to 5"),
        (["--dataset", "pair/data.npy"], "9 images and labels.npy 8 labels"),
        (["--dataset", "odd", "--corruptions", "fog"], "five severities of equal length"),
        (["--dataset", "./nowhere"], "there is no such folder"),
        (["--against", "./nowhere"], "no such folder"),
        (["--batch_size", "0"], "from 1 on"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str],
    says: str,
    finished: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    for folder, name, count, labels in (("pair", "data", 9, 8), ("odd", "fog", 12, 12)):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / f"{name}.npy", np.zeros((count, 32, 32, 3), np.uint8))
        np.save(tmp_path / folder / "labels.npy", np.zeros(labels, np.uint8))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    small = ["--max_eval_samples", "10", "--precision", "fp32"]
    if "--corruptions" not in words:
        small += ["--corruptions", "fog"]
    assert command(["stress", str(finished.path), *small, *words]) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1
