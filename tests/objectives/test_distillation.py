"""Distillation: the loss, its teacher, and resume."""

import shutil

import pytest
import torch
from helpers import tiny_models
from helpers.runs import CHECKPOINT_EVERY_3, assert_same_weights, write_recipe
from torch.nn import functional as F

from hf_cifar.cli import main
from hf_cifar.objectives.distillation import Distillation
from hf_cifar.recipe.load import load_recipe


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
    assert taught.metrics["teacher"] == {"name": "teacher", "weight": 1.0, "temperature": 2.0}
    card = (taught.path / "README.md").read_text()
    assert "from the answers of a teacher, teacher," in card
    assert teacher not in card


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
