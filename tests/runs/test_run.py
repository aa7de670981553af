"""Runs end to end: what a run leaves, every method on every family, and other data."""

import json
import os

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import torch
from helpers import tiny_models
from helpers.runs import (
    LABELS,
    METHODS,
    assert_same_run,
    assert_same_weights,
    held_out_images,
    largest_difference,
    log_without_times,
    pipeline_probabilities,
    saved_weights,
    write_recipe,
)
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

import hf_cifar
from hf_cifar.training import checkpoints

# ---- every method on every family ----


# Every family and every method twice and more in the quick suite, the other pairs in the slow one.
QUICK = {
    "vit": METHODS,
    "efficientnet": METHODS,
    "deit": ["partial"],
    "dinov2": ["linear"],
    "swin": ["lora"],
    "timm": ["full"],
    "convnext": ["lora"],
    "resnet": ["partial"],
    "timm_vit": ["linear"],
}
PAIRS = [
    pytest.param(family, method, marks=[] if method in QUICK[family] else pytest.mark.slow)
    for family in tiny_models.FAMILIES
    for method in METHODS
]


@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_a_run_of_every_method_and_family(family, method, tiny, train):
    run = train("run", tiny(family), method=method, lora_target_modules="all")
    images, labels = held_out_images(run)
    table = pq.read_table(run.path / "predictions.parquet").to_pydict()
    probabilities = np.array(table["probabilities"])
    assert np.abs(pipeline_probabilities(run.path, images) - probabilities).max() < 1e-4
    assert table["label"] == labels.tolist() and table["index"] == list(range(20))
    assert table["prediction"] == probabilities.argmax(1).tolist()

    metrics = run.metrics
    assert metrics == json.loads((run.path / "metrics.json").read_text())
    assert metrics["method"] == method and metrics["base_model"] == family
    assert metrics["labels"] == LABELS and metrics["train_samples"] == 40
    assert metrics["test_accuracy"] == np.mean(np.array(table["prediction"]) == labels)
    nll = -np.log(probabilities[np.arange(20), labels]).mean()
    assert metrics["test_nll"] == pytest.approx(nll, abs=1e-4)
    assert 0 < metrics["trainable_parameters"] <= metrics["total_parameters"]
    all_train = metrics["trainable_parameters"] == metrics["total_parameters"]
    assert all_train == (method == "full")
    assert metrics["forward_flops_per_image"] > 0
    gap = metrics["train_accuracy"] - metrics["validation_accuracy"]
    assert metrics["train_validation_gap"] == gap
    if method == "linear":  # the backbone's weights are unchanged in the file that others load
        before, after = load_file(tiny(family) / "model.safetensors"), saved_weights(run)
        assert set(before) == set(after)
        changed = [name for name in after if not torch.equal(before[name], after[name])]
        assert len({name.rsplit(".", 1)[0] for name in changed}) == 1
    else:
        assert metrics["global_step"] == 10 and metrics["num_train_epochs"] == 2
        losses = [entry["loss"] for entry in metrics["history"] if "loss" in entry]
        assert len(losses) == 5 and all(np.isfinite(losses)) and min(losses) < losses[0]
        evaluations = [entry for entry in metrics["history"] if "eval_accuracy" in entry]
        assert [entry["step"] for entry in evaluations] == [5, 10]
        best = max(evaluations, key=lambda entry: entry["eval_accuracy"])
        assert metrics["best_step"] == best["step"]
        assert metrics["validation_accuracy"] == pytest.approx(best["eval_accuracy"])

    assert not list(run.path.rglob("*.bin"))  # no pickle of the Trainer's
    written = (run.path / "config.json").read_text() + (run.path / "metrics.json").read_text()
    assert str(run.path.parent) not in written
    assert (run.path / "adapter").is_dir() == (method == "lora")
    if method == "lora":
        base = AutoModelForImageClassification.from_pretrained(tiny(family))
        adapted = PeftModel.from_pretrained(base, run.path / "adapter").eval()
        merged = AutoModelForImageClassification.from_pretrained(run.path).eval()
        pixels = torch.randn(4, 3, 32, 32)
        with torch.inference_mode():
            expected = merged(pixel_values=pixels).logits
            answer = adapted(pixel_values=pixels).logits
        torch.testing.assert_close(answer, expected, atol=1e-4, rtol=0)


# ---- what a run leaves ----


def test_a_run_folder_is_complete(tiny, tmp_path):
    recipe = write_recipe(
        tmp_path / "recipe.yaml", tiny("vit"), report_to="tensorboard", image_size=48
    )
    run = hf_cifar.train(str(recipe), output_dir=str(tmp_path / "run"))
    left = {path.name for path in run.path.iterdir()}
    model = {"model.safetensors", "config.json", "preprocessor_config.json"}
    assert model | {"README.md", "recipe.yaml", "metrics.json", "predictions.parquet"} <= left
    assert {"plots", "checkpoints"} <= left
    assert not {".lock", "metrics.json.part", "training_args.bin"} & left
    assert {path.name for path in (run.path / "plots").iterdir()} >= {
        "learning_curves.png",
        "confusion_matrix.png",
        "per_class_accuracy.png",
        "mistakes.png",
        "reliability.png",
    }
    kept = sorted((run.path / "checkpoints").glob("checkpoint-*"))
    assert [path.name for path in kept] == ["checkpoint-10", "checkpoint-5"]
    assert all(checkpoints.damage(path) is None for path in kept)
    metrics = run.metrics
    low, high = metrics["test_accuracy_ci95"]
    assert 0 <= low <= metrics["test_accuracy"] <= high <= 1
    assert metrics["versions"]["torch"] in (torch.__version__, torch.__version__.split("+")[0])
    assert metrics["hardware"]["cores"] >= 1 and metrics["peak_host_memory_bytes"] > 1e8
    assert metrics["precision"] == "fp32"
    assert metrics["image_size"] == 48 and metrics["recipe"]["image_size"] == 48
    assert len(metrics["dataset_fingerprint"]) == 64 and metrics["dataset"] == "sample"
    card = (run.path / "README.md").read_text()
    accuracy = metrics["test_accuracy"]
    assert f"{accuracy:.4f}"[:4] in card or f"{100 * accuracy:.2f}" in card
    answer = run.pipeline()(held_out_images(run)[0][0])
    assert answer[0]["label"] in LABELS


def test_the_resolved_recipe_runs_again_to_the_same_bits(tiny, tmp_path, train):
    first = train("first", tiny("efficientnet"), seed=3)
    recipe = str(first.path / "recipe.yaml")
    assert_same_run(first, hf_cifar.train(recipe, output_dir=str(tmp_path / "again")))
    other = hf_cifar.train(recipe, output_dir=str(tmp_path / "other"), seed=4)
    assert log_without_times(other.metrics) != log_without_times(first.metrics)


def test_a_cache_elsewhere_changes_nothing(tiny, train, tmp_path, monkeypatch):
    first = train("first", tiny("vit"), method="linear")
    monkeypatch.setenv("HF_CIFAR_CACHE", str(tmp_path / "cache"))
    second = train("second", tiny("vit"), method="linear")
    assert os.listdir(tmp_path / "cache")
    third = train("third", tiny("vit"), method="linear")  # features from the cache
    assert_same_weights(first, second)
    assert_same_weights(first, third)


@pytest.mark.parametrize(
    "keys", [{}, {"method": "linear"}, {"method": "linear", "feature_views": 2}]
)
def test_a_run_without_validation(keys, tiny, train):
    run = train("run", tiny("vit"), validation_fraction=0, **keys)
    assert "validation_accuracy" not in run.metrics and "train_validation_gap" not in run.metrics
    assert "test_accuracy" in run.metrics
    assert run.metrics.get("best_step") is None  # no checkpoint was chosen


# ---- other data ----


@pytest.fixture(scope="module")
def mixed_pictures(tmp_path_factory):
    """A folder of three classes of pictures of many sizes and modes, which differ by colour."""
    folder, random = tmp_path_factory.mktemp("mixed"), np.random.default_rng(0)
    colours = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}
    for split, count in (("train", 12), ("test", 4)):
        for name, colour in colours.items():
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                height, width = random.integers(20, 90, 2)
                noise = random.integers(-30, 30, (height, width, 3))
                pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
                picture = PIL.Image.fromarray(pixels).convert(("RGB", "P", "RGBA")[i % 3])
                suffix = "png" if i % 2 else "webp" if i % 3 != 1 else "gif"
                picture.save(folder / split / name / f"{i}.{suffix}")
    return folder


@pytest.mark.parametrize("method", ["full", "linear"])
def test_pictures_of_mixed_sizes_train(method, mixed_pictures, tiny, train):
    keys = {
        "dataset_name": str(mixed_pictures),
        "max_train_samples": None,
        "max_eval_samples": None,
        "image_size": 32,
        "method": method,
        "num_train_epochs": 4,
        "learning_rate": 0.01,
        "validation_fraction": 0.2,
    }
    run = train("run", tiny("efficientnet"), **keys)
    assert run.metrics["labels"] == ["blue", "green", "red"] and run.metrics["test_accuracy"] > 0.5
    table = pq.read_table(run.path / "predictions.parquet").to_pydict()
    images = [PIL.Image.open(path) for path in sorted((mixed_pictures / "test").rglob("*.*"))]
    by_pipeline = pipeline_probabilities(run.path, images, run.metrics["labels"])
    difference = np.sort(by_pipeline, 0) - np.sort(np.array(table["probabilities"]), 0)
    assert np.abs(difference).max() < 1e-4
    if method == "full":
        workers = train("workers", tiny("efficientnet"), **keys | {"dataloader_num_workers": 2})
        assert_same_weights(run, workers)


def test_data_without_a_test_split(mixed_pictures, tiny, train):
    run = train(
        "run",
        tiny("vit"),
        dataset_name=str(mixed_pictures / "train"),
        test_fraction=0.25,
        max_train_samples=None,
        max_eval_samples=None,
        num_train_epochs=1,
    )
    assert run.metrics["test_samples"] == 9 and run.metrics["labels"] == ["blue", "green", "red"]


# ---- precision and layout ----


def test_channels_last_is_the_same_model(tiny, train):
    keys = {"optim": "sgd", "num_train_epochs": 1}
    plain = saved_weights(train("plain", tiny("resnet"), channels_last=False, **keys))
    other = saved_weights(train("other", tiny("resnet"), channels_last=True, **keys))
    assert largest_difference(plain, other) < 1e-4


def test_bfloat16_is_recorded_and_weights_stay_float32(tiny, train):
    run = train("run", tiny("vit"), bf16=True)
    assert run.metrics["precision"] == "bf16"
    assert all(tensor.dtype == torch.float32 for tensor in saved_weights(run).values())
