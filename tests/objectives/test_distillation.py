"""Distillation: the loss, its teacher, and resume."""

import shutil

import numpy as np
import pytest
import torch
from helpers import tiny_models
from helpers.runs import CHECKPOINT_EVERY_3, assert_same_weights, write_recipe
from torch.nn import functional as F

from hf_cifar.cli import main
from hf_cifar.evaluation.classifier import load_classifier
from hf_cifar.objectives.base import ReadyModel
from hf_cifar.objectives.distillation import Distillation, epochs_of
from hf_cifar.recipe.load import load_recipe
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.training.precision import has_bf16


@pytest.fixture
def teacher(tiny, train):
    return str(train("teacher", tiny("resnet"), method="linear", max_train_samples=100).path)


def keys(teacher, **more):
    return {"objective": "distillation", "teacher": teacher} | more


def test_the_loss_is_labels_and_teacher_by_weight(tiny, teacher, tmp_path):
    more = keys(teacher, teacher_weight=0.25, distillation_temperature=3.0)
    path = write_recipe(tmp_path / "mine.yaml", tiny("vit"), **more)
    objective = Distillation(load_recipe(str(path)))
    logits, answers = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6)
    loss = objective.loss({"logits": logits}, torch.cat([labels[:, None].float(), answers], 1))
    soft = -(answers.div(3).softmax(1) * logits.div(3).log_softmax(1)).sum(1).mean()
    entropy = -(answers.div(3).softmax(1) * answers.div(3).log_softmax(1)).sum(1).mean()
    expected = 0.75 * F.cross_entropy(logits, labels) + 0.25 * 9 * (soft - entropy)
    torch.testing.assert_close(loss, expected)
    plain = objective.loss({"logits": logits}, labels)
    torch.testing.assert_close(plain, F.cross_entropy(logits, labels))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_weight_0_is_classification_and_the_card_names_the_teacher(method, tiny, train, teacher):
    plain = train("plain", tiny("vit"), method=method)
    alone = train("alone", tiny("vit"), method=method, **keys(teacher, teacher_weight=0.0))
    taught = train("taught", tiny("vit"), method=method, **keys(teacher, teacher_weight=1.0))
    assert_same_weights(plain, alone)
    with pytest.raises(AssertionError):
        assert_same_weights(plain, taught)
    facts = {"name": "teacher", "weight": 1.0, "temperature": 2.0, "views": "plain"}
    assert taught.metrics["teacher"] == facts
    card = (taught.path / "README.md").read_text()
    assert "from the answers of a teacher, teacher," in card
    assert teacher not in card


def cached_logits(cache) -> dict[str, int]:
    """Return the entries of the teacher's logits in a cache, with when each was written."""
    files = {path: np.load(path, mmap_mode="r") for path in (cache / "features").glob("*.npy")}
    return {p.name: p.stat().st_mtime_ns for p, array in files.items() if array.shape[-1] == 10}


@pytest.fixture
def own_cache(teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_CIFAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_teacher_answers_to_each_epochs_view(tiny, teacher, own_cache, tmp_path):
    more = {"teacher_views": "each_epoch", "auto_augment": "trivialaugment", "random_erasing": 0.5}
    path = write_recipe(tmp_path / "mine.yaml", tiny("resnet"), **keys(teacher, **more))
    objective = Distillation(load_recipe(str(path)))
    backbone, device = objective.load_backbone(), torch.device("cpu")
    batches = objective.datasets(ReadyModel(backbone, backbone.model, device)).train
    classifier = load_classifier(teacher)
    assert classifier.labels == objective.label_names
    answers = []
    for epoch in (0, 1):
        tickets = [epoch * len(batches) + index for index in (3, 17, 30)]
        inputs = batches.model_inputs(batches.__getitems__(tickets), device)
        answers.append(inputs["labels"][:, 1:])
        with (
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16, enabled=has_bf16(device)),
        ):
            expected = classifier.model(pixel_values=inputs["pixel_values"]).logits.float()
        torch.testing.assert_close(answers[-1], expected, rtol=0.02, atol=0.02)
    assert (answers[0] - answers[1]).abs().max() > 0.05


def test_without_augmentation_both_kinds_of_views_are_one(tiny, teacher, own_cache, tmp_path):
    answers = {}
    for views in ("plain", "each_epoch"):
        more = {"teacher_views": views, "horizontal_flip": 0, "random_resized_crop_scale": None}
        path = write_recipe(tmp_path / "mine.yaml", tiny("vit"), **keys(teacher, **more))
        objective = Distillation(load_recipe(str(path)))
        backbone = objective.load_backbone()
        ready = ReadyModel(backbone, backbone.model, torch.device("cpu"))
        datasets = objective.datasets(ready)
        answers[views] = [torch.from_numpy(array) for array in datasets.train.answers]
    assert len(answers["plain"]) == 1 and len(answers["each_epoch"]) == 2
    for array in answers["each_epoch"]:
        torch.testing.assert_close(array, answers["plain"][0], rtol=0.02, atol=0.02)


def test_views_cost_one_pass_each_and_a_stopped_run_has_the_same(tiny, train, teacher, own_cache):
    settings = keys(teacher, teacher_views="each_epoch") | CHECKPOINT_EVERY_3
    whole = train("whole", tiny("vit"), **settings)
    assert whole.metrics["teacher"]["views"] == "each_epoch"
    assert "the same view of each image" in (whole.path / "README.md").read_text()
    entries = cached_logits(own_cache)
    assert len(entries) == 2  # epochs
    longer = train("longer", tiny("vit"), **settings | {"max_steps": 11})  # 5 an epoch
    assert longer.metrics["num_train_epochs"] == 2.2
    assert (
        len(cached_logits(own_cache)) == 3 and entries.items() <= cached_logits(own_cache).items()
    )

    stopped = train("stopped", tiny("vit"), **settings)
    newest = max(
        (stopped.path / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name[11:])
    )
    shutil.rmtree(newest)
    (stopped.path / "metrics.json").unlink()
    shutil.rmtree(own_cache)
    assert_same_weights(whole, train("stopped", tiny("vit"), **settings))
    plain = train("plain", tiny("vit"), **settings | {"teacher_views": "plain"})
    with pytest.raises(AssertionError):
        assert_same_weights(whole, plain)


@pytest.mark.parametrize(
    ("training", "images", "epochs"),
    [
        ({"num_train_epochs": 2.5}, 100, 3),
        ({"max_steps": 9}, 36, 3),
        ({"max_steps": 8}, 36, 2),
        ({"max_steps": 8, "dataloader_drop_last": False}, 36, 2),
        ({"max_steps": 5, "dataloader_drop_last": False}, 36, 1),
        ({"max_steps": 3}, 5, 3),
    ],
)
def test_epochs_of_a_run(training, images, epochs):
    recipe = Recipe()
    recipe.training |= {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    recipe.training |= training
    assert epochs_of(recipe, images) == epochs


def test_a_stopped_run_learns_from_the_same_answers(tiny, train, teacher, tmp_path):
    settings = keys(teacher) | CHECKPOINT_EVERY_3
    whole = train("whole", tiny("vit"), **settings)
    stopped = train("stopped", tiny("vit"), **settings)
    newest = max(
        (stopped.path / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name[11:])
    )
    shutil.rmtree(newest)
    (stopped.path / "metrics.json").unlink()
    resumed = train("stopped", tiny("vit"), **settings)
    assert_same_weights(whole, resumed)


def test_a_student_learns_what_the_teacher_answers(tiny, train, teacher):
    settings = {"num_train_epochs": 8, "horizontal_flip": 0, "random_resized_crop_scale": None}
    run = train("run", tiny("resnet"), **keys(teacher, teacher_weight=1.0, **settings))
    losses = [entry["loss"] for entry in run.metrics["history"] if "loss" in entry]
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"teacher": None}, "needs `teacher`"),
        ({"objective": "classification"}, "only with `objective: distillation`"),
        ({"mixup_alpha": 0.2}, "mixup_alpha"),
        ({"method": "linear"}, "full, lora"),
        ({"teacher": "./nowhere"}, "nowhere"),
        ({"teacher_weight": 2}, "at most 1"),
        ({"teacher_views": "some"}, "plain, each_epoch"),
        ({"distillation_temperature": 0}, "above 0"),
    ],
)
def test_bad_input(change, part, tiny, tmp_path, capfd):
    values = keys(str(tiny("resnet"))) | change
    path = write_recipe(tmp_path / "mine.yaml", tiny("vit"), **values)
    assert main.run(["train", str(path), "--output_dir", str(tmp_path / "run")]) == 2
    assert part in capfd.readouterr().err


def test_a_teacher_with_other_classes(tiny, teacher, tmp_path, capfd):
    names = ["fox", "oak", "elm", "ash", "yew", "fir", "bay", "fig", "box", "may"]
    shutil.copytree(teacher, tmp_path / "trees")
    changes = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }
    tiny_models.edit_config(tmp_path / "trees", **changes)
    path = write_recipe(tmp_path / "mine.yaml", tiny("vit"), **keys(str(tmp_path / "trees")))
    assert main.run(["train", str(path), "--output_dir", str(tmp_path / "run")]) == 2
    assert "knows other classes (fox, oak, elm, ...) than the data" in capfd.readouterr().err
