"""Scores of a model: on a run's own data, wherever it lies, whatever the order of its labels."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from helpers import tiny_models
from helpers.runs import LABELS
from safetensors.torch import load_file, save_file
from transformers import pipeline

from hf_cifar.data.load import load_split
from hf_cifar.errors import UserError
from hf_cifar.evaluation.classifier import load_classifier, probabilities
from hf_cifar.evaluation.evaluate import data_recipe, evaluate


@pytest.fixture
def net(tiny, tmp_path):
    """A tiny ViT with CIFAR-10's labels, and a head that tells images apart."""
    folder = shutil.copytree(tiny("vit"), tmp_path / "net")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"].normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    name_classes(folder, LABELS)
    return folder


def name_classes(folder, labels):
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": dict(enumerate(labels)), "label2id": {}}
    (folder / "config.json").write_text(json.dumps(config))


def score(net, dataset="sample", **options):
    options = {"split": "test", "batch_size": 128, "precision": "fp32", "tta": "none"} | options
    return evaluate(str(net), dataset, **options)


def test_the_order_of_labels_does_not_matter(net):
    metrics = score(net)
    assert metrics["test_samples"] == 1000 and 0 < metrics["test_accuracy"] < 1
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    weights = load_file(net / "model.safetensors")
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name][order].contiguous()
    save_file(weights, net / "model.safetensors", metadata={"format": "pt"})
    name_classes(net, [LABELS[number] for number in order])
    permuted = score(net)
    assert permuted["test_confusion_matrix"] == metrics["test_confusion_matrix"]
    assert permuted["test_nll"] == pytest.approx(metrics["test_nll"], rel=1e-6)


def test_batches_of_any_size_and_mirror_images(net):
    metrics = score(net)
    for size in (1000, 7):
        assert (
            score(net, batch_size=size)["test_confusion_matrix"]
            == (metrics["test_confusion_matrix"])
        )
    flipped = score(net, tta="flip")
    assert flipped["tta"] == "flip" and flipped["test_nll"] != metrics["test_nll"]


def test_fewer_classes_than_the_data_has(net):
    weights = load_file(net / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name][:9].contiguous()
    save_file(weights, net / "model.safetensors", metadata={"format": "pt"})
    name_classes(net, LABELS[:9])
    with pytest.raises(UserError, match="knows 9 of the data's 10 classes"):
        score(net)


def test_mirrored_answers_are_the_mean_of_both(net):
    classifier = load_classifier(str(net))
    split = load_split(data_recipe("", "sample"), "test")
    plain = probabilities(classifier, split, batch_size=64, bf16=False)
    both = probabilities(classifier, split, batch_size=64, bf16=False, flip=True)
    np.testing.assert_allclose(plain.sum(1), 1)
    mirrored = 2 * both - plain
    np.testing.assert_allclose(mirrored.sum(1), 1)
    assert mirrored.min() > 0 and np.abs(mirrored - plain).max() > 1e-3


# timm's processor takes one PIL image at a time; what stands in for it may crop a pixel beside.
@pytest.mark.parametrize("family", [f for f in tiny_models.FAMILIES if not f.startswith("timm")])
def test_a_checkpoint_of_others_is_scored_as_pipeline_answers(family, tiny, tmp_path):
    """With its own processor, on pictures of several sizes."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(10):
            folder = tmp_path / "pictures" / split / f"LABEL_{number}"
            folder.mkdir(parents=True)
            image = rng.integers(0, 256, (30 + number, 50 - number, 3), dtype=np.uint8)
            PIL.Image.fromarray(image).save(folder / "0.png")
    split = load_split(data_recipe("", str(tmp_path / "pictures")), "test")
    ours = probabilities(load_classifier(str(tiny(family))), split, batch_size=4, bf16=False)
    classify = pipeline("image-classification", model=str(tiny(family)), top_k=10)
    answers = classify(sorted(map(str, (tmp_path / "pictures" / "test").rglob("*.png"))))
    theirs = [
        [{a["label"]: a["score"] for a in x}[f"LABEL_{i}"] for i in range(10)] for x in answers
    ]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


# ---- where a run's data lies ----


def make_run(folder, dataset_name, dataset_path):
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"dataset_name": dataset_name, "seed": 4}))
    (folder / ".hf_cifar.json").write_text(json.dumps({"dataset_path": dataset_path}))
    return folder


def test_a_run_finds_its_data_from_another_folder(tmp_path, monkeypatch):
    data = tmp_path / "work" / "pictures"
    data.mkdir(parents=True)
    run = make_run(tmp_path / "work" / "runs" / "first", "pictures", str(data))
    monkeypatch.chdir("/")
    recipe = data_recipe(str(run), None)
    assert recipe.dataset_name == str(data) and recipe.seed == 4

    moved = (tmp_path / "work").rename(tmp_path / "moved")
    run = moved / "runs" / "first"
    assert data_recipe(str(run), None).dataset_name == str(moved / "pictures")
    (moved / "pictures").rename(moved / "runs" / "pictures")
    assert data_recipe(str(run), None).dataset_name == str(moved / "runs" / "pictures")
    (moved / "runs" / "pictures").rmdir()
    assert data_recipe(str(run), None).dataset_name == "pictures"


def test_data_from_the_hub_is_not_looked_for_in_folders(tmp_path):
    run = make_run(tmp_path / "runs" / "first", "uoft-cs/cifar10", None)
    (tmp_path / "runs" / "cifar10").mkdir()
    assert data_recipe(str(run), None).dataset_name == "uoft-cs/cifar10"
    for damaged in ("", "[]", '"x"', '{"dataset_path": [1]}', "\xff"):
        (run / ".hf_cifar.json").write_text(damaged, encoding="latin-1")
        assert data_recipe(str(run), None).dataset_name == "uoft-cs/cifar10"


def test_named_data_comes_first_and_models_have_the_default(tmp_path):
    run = make_run(tmp_path / "runs" / "first", "pictures", None)
    assert data_recipe(str(run), "sample").dataset_name == "sample"
    assert data_recipe(str(run), "sample").seed != 4
    assert data_recipe("someone/net", None).dataset_name == "uoft-cs/cifar10"


def test_evaluate_finds_a_runs_pictures(net, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in LABELS:
            (tmp_path / "pictures" / split / label).mkdir(parents=True)
            image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            PIL.Image.fromarray(image).save(tmp_path / "pictures" / split / label / "0.png")
    run = make_run(tmp_path / "runs" / "first", "pictures", str(tmp_path / "pictures"))
    shutil.copytree(net, run, dirs_exist_ok=True)
    monkeypatch.chdir("/")
    assert score(run, dataset=None)["test_samples"] == 10
