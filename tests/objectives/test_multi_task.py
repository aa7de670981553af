"""Several tasks at once: the loss, shared images, one model a task, resume, and bad input."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import launching, tiny_models
from helpers.runs import (
    CHECKPOINT_EVERY_3,
    assert_same_run,
    held_out_images,
    largest_difference,
    pipeline_probabilities,
    train_into,
    write_recipe,
)
from helpers.watching import images_seen, stopped_in_step
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoConfig

from hf_cifar.cli import main
from hf_cifar.data.batches import ImageBatches
from hf_cifar.data.load import load_split
from hf_cifar.errors import UserError
from hf_cifar.hub.privacy import scan
from hf_cifar.hub.run_files import files_to_push, finished_metrics, is_optional
from hf_cifar.models.load import load_backbone
from hf_cifar.models.task_heads import read_tasks
from hf_cifar.objectives.joint_batches import NO_LABEL, turned
from hf_cifar.objectives.multi_task import MultiTask
from hf_cifar.objectives.table import find_objective
from hf_cifar.recipe.fields import ModelKeys
from hf_cifar.recipe.load import load_recipe, make_recipe
from hf_cifar.runs.folder import RunFolder
from hf_cifar.runs.run import set_up

KIND = {
    "vehicle": ["airplane", "automobile", "ship", "truck"],
    "animal": ["bird", "cat", "deer", "dog", "frog", "horse"],
}
CLASSES, KINDS = {"name": "classes"}, {"name": "kind", "label_map": KIND}
TURNED = {"name": "turned", "orientation": True}


def keys(*tasks, **more):
    return {"objective": "multi_task", "tasks": list(tasks)} | more


@pytest.fixture
def recipe(tiny, tmp_path):
    """recipe(*tasks, key=value, ...): a loaded recipe for the tiny ResNet."""

    def load(*tasks, **more):
        path = write_recipe(tmp_path / "mine.yaml", tiny("resnet"), **keys(*tasks, **more))
        return load_recipe(str(path), {"output_dir": str(tmp_path / "unused")})

    return load


@pytest.fixture(scope="module")
def joint(tiny, tmp_path_factory):
    """A finished run of two tasks on the same images and one on turned ones."""
    folder = tmp_path_factory.mktemp("joint") / "run"
    weighted = KINDS | {"weight": 0.5}
    more = {"per_device_eval_batch_size": 16}  # the last batch of 40 has 8 images, all turned
    return train_into(folder, tiny("resnet"), **keys(CLASSES, weighted, TURNED, **more))


# ---- the loss ----


def plain_loss(logits, labels, weights):
    """Return the sum over tasks of weight x cross-entropy, image by image."""
    total, start = 0.0, 0
    for task, (classes, weight) in enumerate(weights):
        for row, label in enumerate(labels[:, task].tolist()):
            if label != NO_LABEL:
                total += weight * -logits[row, start : start + classes].log_softmax(0)[label]
        start += classes
    return total / len(labels)


def test_the_loss_is_the_weighted_sum_over_the_images_with_a_label(recipe):
    objective = MultiTask(recipe(CLASSES, KINDS | {"weight": 0.25}, TURNED))
    logits = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[3, 1, -100], [9, 0, -100], [-100, -100, 2], [0, 0, -100]] * 2)[:6]
    expected = plain_loss(logits, labels, [(10, 1.0), (2, 0.25), (4, 1.0)])
    torch.testing.assert_close(objective.loss({"logits": logits}, labels), expected)
    counted = objective.loss({"logits": logits}, labels, torch.tensor(12))
    torch.testing.assert_close(counted, expected / 2)


def test_a_learned_weight_is_the_tasks_precision(recipe):
    objective = MultiTask(recipe(CLASSES, KINDS, task_weighting="learned"))
    logits = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[3, 1], [9, 0], [-100, 1], [0, 0]])
    variances = torch.tensor([0.3, -1.2], requires_grad=True)
    outputs = {"logits": torch.cat([logits, variances.expand(4, 2)], 1)}
    loss = objective.loss(outputs, labels)
    first = F.cross_entropy(logits[[0, 1, 3], :10], labels[[0, 1, 3], 0], reduction="sum")
    second = F.cross_entropy(logits[:, 10:], labels[:, 1], reduction="sum")
    s, t = variances
    expected = ((-s).exp() * first + 3 * s / 2 + (-t).exp() * second + 4 * t / 2) / 4
    torch.testing.assert_close(loss, expected)
    loss.backward()
    slopes = torch.stack([1.5 - (-s).exp() * first, 2 - (-t).exp() * second]) / 4
    torch.testing.assert_close(variances.grad, slopes.detach())


# ---- images and labels ----


def test_tasks_on_one_data_set_share_images_and_others_follow_them(recipe):
    setup = set_up(recipe(CLASSES, KINDS, TURNED, random_resized_crop_scale=None))
    train = setup.datasets.train
    assert [len(part) for part in train.parts] == [40, 40]  # two tasks, then the turned images
    tickets = [2 * 80 + 3, 2 * 80 + 45, 2 * 80 + 7]  # of epoch 2
    batch = train.__getitems__(tickets)
    assert (batch["labels"] != NO_LABEL).sum() == 3  # by which the Trainer divides the loss
    inputs = train.model_inputs(batch, torch.device("cpu"))
    plain, upright = (part.batches for part in train.parts)
    assert isinstance(plain, ImageBatches)
    pixels = [
        part.model_inputs(part.__getitems__([2 * 40 + index]), torch.device("cpu"))["pixel_values"]
        for part, index in ((plain, 3), (upright, 5), (plain, 7))
    ]
    labels = inputs["labels"]
    quarters = labels[1, 2]
    expected = torch.cat([pixels[0], torch.rot90(pixels[1], int(quarters), (2, 3)), pixels[2]])
    torch.testing.assert_close(inputs["pixel_values"], expected)
    numbers = plain.split.labels[[3, 7]]
    names, kinds = (setup.objective.labels_of[task] for task in ("classes", "kind"))
    merged = {old: kinds.index(new) for new, olds in KIND.items() for old in olds}
    animals = [merged[names[number]] for number in numbers]
    assert labels[[0, 2]].tolist() == [[n, k, -100] for n, k in zip(numbers, animals, strict=True)]
    assert labels[1, :2].tolist() == [-100, -100] and 0 <= quarters < 4


def test_turns_are_drawn_anew_in_each_epoch_and_fixed_in_evaluation(recipe):
    setup = set_up(recipe(CLASSES, TURNED))
    train, test = setup.datasets.train, setup.datasets.evaluation["test"]
    epochs = [train.__getitems__([e * 80 + i for i in range(40, 80)]) for e in range(3)]
    turns = [batch["parts"]["1"]["task_labels"][:, 1] for batch in epochs]
    assert not torch.equal(turns[0], turns[1]) and not torch.equal(turns[1], turns[2])
    assert all(len(drawn.unique()) == 4 for drawn in turns)
    scored = test.model_inputs(test.__getitems__(list(range(40))), torch.device("cpu"))
    assert np.array_equal(scored["labels"].numpy(), test.labels)


def test_turned_is_against_the_clock():
    image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]).repeat(4, 1, 1, 1)
    corners = turned(image, torch.arange(4)).flatten(1)[:, 0].tolist()
    assert corners == [1.0, 2.0, 4.0, 3.0]


def test_another_label_column_is_read_without_pictures_and_cut_as_the_first(
    tmp_path, tiny, train, monkeypatch
):
    import datasets

    monkeypatch.setenv("HF_CIFAR_CACHE", str(tmp_path / "cache"))

    rng = np.random.default_rng(0)
    rows = {
        "image": [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(60)],
        "shape": [number % 3 for number in range(60)],
        "colour": [["red", "blue"][number // 7 % 2] for number in range(60)],
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "shape": datasets.ClassLabel(names=["square", "disc", "star"]),
            "colour": datasets.Value("string"),
        }
    )
    folder = tmp_path / "data"
    folder.mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / "train.parquet"))
    tasks = [{"name": n, "label_column_name": n} for n in ("shape", "colour")]
    tasks[1]["dataset_name"] = f"{folder}/../data"
    run = train(
        "run", tiny("resnet"), dataset_name=str(folder), max_train_samples=None, **keys(*tasks)
    )
    splits = [load_split(load_recipe(str(run.path / "tasks" / t["name"])), "test") for t in tasks]
    assert np.array_equal(splits[0].rows, splits[1].rows) and len(splits[0]) == 12
    assert np.array_equal(splits[0].labels, splits[0].rows % 3)
    assert np.array_equal(splits[1].labels, 1 - splits[1].rows // 7 % 2)  # blue, red
    assert run.metrics["tasks"]["colour"]["labels"] == ["blue", "red"]
    assert len(list((tmp_path / "cache").glob("**/pixels.npy"))) == 1  # decoded once


# ---- what a run leaves ----


def test_each_task_has_a_folder_for_pipeline_which_agrees_with_predict(joint, tmp_path, capsys):
    images, labels = held_out_images_of(joint, "classes")
    for number, image in enumerate(images[:3]):
        image.save(tmp_path / f"{number}.png")
    assert main.run(["predict", str(joint.path), str(tmp_path), "--json", "--top", "10"]) == 0
    answers = [json.loads(line)["tasks"] for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 3 and list(answers[0]) == ["classes", "kind", "turned"]
    for task, scores in joint.metrics["tasks"].items():
        names, folder = scores["labels"], joint.path / "tasks" / task
        expected = pipeline_probabilities(folder, images[:3], names)
        given = [{a["label"]: a["score"] for a in answer[task]} for answer in answers]
        np.testing.assert_allclose([[g[n] for n in names] for g in given], expected, atol=1e-6)
        assert (folder / "predictions.parquet").is_file() and (folder / "README.md").is_file()
    probabilities = pipeline_probabilities(joint.path / "tasks" / "classes", images)
    accuracy = float((probabilities.argmax(1) == labels).mean())
    assert accuracy == joint.metrics["test_accuracy_classes"]
    out = tmp_path / "answers.parquet"
    words = ["predict", str(joint.path), str(tmp_path), "--out", str(out), "--top", "10", "--json"]
    assert main.run(words) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 3
    for row, answer in zip(pq.read_table(out).to_pylist(), answers, strict=True):
        assert set(row) == {"image", "error"} | {
            f"{name}_{task}" for name in ("label", "score", "labels") for task in answer
        }
        for task, labels in answer.items():
            assert row[f"label_{task}"] == labels[0]["label"] and row["error"] is None
            assert [one["label"] for one in row[f"labels_{task}"]] == [a["label"] for a in labels]
            assert row[f"score_{task}"] == pytest.approx(labels[0]["score"], abs=1e-6)
    assert main.run(["predict", str(joint.path), str(tmp_path / "0.png")]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == list(answers[0])


def held_out_images_of(run, task):
    class OfTask:
        path = run.path / "tasks" / task

    return held_out_images(OfTask)


def test_metrics_and_card_tell_of_each_task(joint):
    metrics = joint.metrics
    of_tasks = [m["validation_nll"] * m["validation_samples"] for m in metrics["tasks"].values()]
    expected = np.dot(of_tasks, [1, 0.5, 1]) / metrics["validation_samples"]
    losses = {
        entry["step"]: entry["eval_loss"] for entry in metrics["history"] if "eval_loss" in entry
    }
    assert losses[metrics["best_step"]] == pytest.approx(expected, rel=1e-5)
    accuracies = [metrics[f"test_accuracy_{task}"] for task in ("classes", "kind", "turned")]
    assert metrics["test_accuracy"] == pytest.approx(np.mean(accuracies))
    assert metrics["test_samples"] == 40 and metrics["train_samples"] == 80
    evaluations = [entry for entry in metrics["history"] if "eval_accuracy" in entry]
    assert len(evaluations) == 2 and "eval_accuracy_turned" in evaluations[0]
    assert metrics["tasks"]["turned"]["labels"] == ["0", "90", "180", "270"]
    of_kind = json.loads((joint.path / "tasks" / "kind" / "metrics.json").read_text())
    assert of_kind["test_accuracy"] == metrics["test_accuracy_kind"] and "tasks" not in of_kind
    assert sum(map(sum, of_kind["test_confusion_matrix"])) == of_kind["test_samples"] == 20
    card = (joint.path / "README.md").read_text()
    assert "| [kind](tasks/kind/README.md) | animal, vehicle | sample | 40 |" in card
    assert 'model=f"{folder}/tasks/turned"' in card


def test_evaluate_names_the_tasks_and_scores_each(joint, capsys):
    assert main.run(["evaluate", str(joint.path)]) == 2
    assert "tasks/classes, tasks/kind, tasks/turned" in capsys.readouterr().err
    assert main.run(["evaluate", str(joint.path / "tasks" / "turned")]) == 2
    assert "turned pictures; name tasks/NAME" in capsys.readouterr().err
    for task in ("classes", "kind"):
        folder = str(joint.path / "tasks" / task)
        assert main.run(["evaluate", folder, "--json", "--precision", "fp32"]) == 0
        scores = json.loads(capsys.readouterr().out)
        assert scores["test_accuracy"] == joint.metrics[f"test_accuracy_{task}"]


def test_fresh_removes_the_folders_of_the_tasks(joint, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(joint.path, folder)
    recipe = load_recipe(str(folder / "recipe.yaml"), {"output_dir": str(folder)})
    with RunFolder.claim(recipe, fresh=True):
        assert not (folder / "tasks").exists() and not (folder / "config.json").exists()


@pytest.mark.parametrize("family", ["vit", "timm"])
def test_lora_and_learned_weights_leave_plain_models(family, tiny, train):
    learned = keys(CLASSES, KINDS, task_weighting="learned")
    with images_seen() as seen:
        run = train("run", tiny(family), method="lora", **learned)
    # 2 epochs of 5 steps of 8 images: no second pass for the second task
    assert sum(count for count in seen if count == 8) == 2 * 40
    images, labels = held_out_images_of(run, "kind")
    names = run.metrics["tasks"]["kind"]["labels"]
    probabilities = pipeline_probabilities(run.path / "tasks" / "kind", images, names)
    accuracy = float((probabilities.argmax(1) == labels).mean())
    assert accuracy == run.metrics["test_accuracy_kind"]
    assert all(s["learned_weight"] != 1.0 for s in run.metrics["tasks"].values())
    assert (run.path / "adapter" / "adapter_model.safetensors").is_file()
    assert not (run.path / "tasks" / "kind" / "adapter").exists()


def test_a_stopped_run_resumes_to_the_same_bits(tiny, train):
    more = keys(CLASSES, KINDS, TURNED, task_weighting="learned", ema_decay=0.8)
    more |= CHECKPOINT_EVERY_3 | {"max_train_samples": 20, "horizontal_flip": 0.5}
    whole = train("whole", tiny("resnet"), **more)
    with stopped_in_step(5):
        train("stopped", tiny("resnet"), **more)
    assert_same_run(whole, train("stopped", tiny("resnet"), **more))


def test_tasks_of_two_data_sets_may_have_sizes_of_their_own(recipe):
    small = {"name": "few", "max_train_samples": 10, "label_map": KIND}
    setup = set_up(recipe(CLASSES, small))
    assert [len(part) for part in setup.datasets.train.parts] == [40, 10]
    labels = setup.datasets.train.labels
    assert (labels[:40, 1] == NO_LABEL).all() and (labels[40:, 0] == NO_LABEL).all()
    assert (labels[40:, 1] >= 0).all()


def test_a_push_takes_the_folders_of_the_tasks_and_no_path(joint, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(joint.path, run)
    recipe = run / "tasks" / "kind" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("dataset_name: sample", "dataset_name: /a/b/mine"))
    files = files_to_push(run, finished_metrics(run), "alice/net")
    of_kind = {name.removeprefix("tasks/kind/") for name in files if name.startswith("tasks/kind")}
    assert {"config.json", "model.safetensors", "README.md", "recipe.yaml"} <= of_kind
    assert "plots/confusion_matrix.png" in of_kind and "predictions.parquet" not in of_kind
    public = files["tasks/kind/recipe.yaml"]
    assert isinstance(public, bytes) and b"dataset_name: mine" in public and b"/a/b" not in public
    assert all(is_optional(name) for name in files if name.startswith("tasks/"))
    card = files["README.md"]
    assert isinstance(card, bytes) and b'snapshot_download("alice/net")' in card
    scan(run, {name: file for name, file in files.items() if name != "recipe.yaml"})


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_processes_give_what_one_gives(method, tiny, tmp_path):
    more = keys(CLASSES, KINDS, TURNED, task_weighting="learned", method=method, optim="sgd")
    more |= {"head_init": "default", "per_device_eval_batch_size": 16, "logging_steps": 1}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        share = {"per_device_train_batch_size": 16 // processes}
        write_recipe(folder / "run.yaml", tiny("vit"), **more | share)
        launching.run(processes, "train_folder", str(folder))
    runs = [tmp_path / str(processes) / "run" for processes in (1, 2)]
    one, two = (json.loads((run / "metrics.json").read_text()) for run in runs)
    for path in ("model.safetensors", "tasks/turned/model.safetensors"):
        weights, others = (load_file(run / path) for run in runs)
        assert largest_difference(weights, others) < 1e-5
    assert one["test_samples"] == two["test_samples"] == 40 and one["global_step"] == 10
    for key in ("loss", "eval_loss", "eval_accuracy_turned"):
        values = [[entry[key] for entry in m["history"] if key in entry] for m in (one, two)]
        assert len(values[0]) >= 2 and values[0] == pytest.approx(values[1], abs=1e-5)


def test_orientation_needs_no_labels(recipe, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(12):
        Image.effect_noise((32, 32), number + 1).convert("RGB").save(folder / f"{number}.png")
    unlabelled = TURNED | {"dataset_name": str(folder), "max_train_samples": None}
    setup = set_up(recipe(CLASSES, unlabelled))
    counts = [len(part) for part in setup.datasets.train.parts]
    assert counts == [40, 11] and len(setup.datasets.evaluation["validation"]) == 20 + 1


def test_a_model_of_several_tasks_is_a_backbone_for_one(joint):
    keys = ModelKeys(model_name_or_path=str(joint.path))
    config = load_backbone(keys, ["cat", "dog"]).model.config
    assert len(read_tasks(AutoConfig.from_pretrained(joint.path), "it")) == 3
    assert read_tasks(config, "it") == {} and list(config.id2label.values()) == ["cat", "dog"]


# ---- bad input ----


@pytest.mark.parametrize(
    ("tasks", "more", "message"),
    [
        ([CLASSES, {"name": "Classes"}], {}, "two tasks are called Classes; rename"),
        ([CLASSES, {"name": "a/b"}], {}, "task 2: name: 'a/b' is no folder's name"),
        ([CLASSES, {"name": ".."}], {}, "is no folder's name"),
        ([CLASSES, {"weight": 2}], {}, "task 2: has no name"),
        ([CLASSES], {}, "needs two tasks at least"),
        ([CLASSES, {"name": "b", "lable_map": KIND}], {}, "did you mean `label_map`"),
        ([CLASSES, {"name": "b", "weight": 0}], {}, "task 2: weight: must be above 0"),
        ([CLASSES, TURNED | {"label_map": KIND}], {}, "its labels are made from the pictures"),
        ([CLASSES, KINDS | {"validation_fraction": 0.3}], {}, "would train on the other's test"),
        ([CLASSES, {"name": "b", "label_column_name": "c"}], {}, "name one for each"),
        ([CLASSES, KINDS], {"objective": "classification"}, "only with `objective: multi_task`"),
        ([CLASSES, KINDS], {"consistency_weight": 12}, "has a loss of its own"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(tasks, more, message, capsys, tmp_path, tiny):
    path = write_recipe(tmp_path / "mine.yaml", tiny("resnet"), **keys(*tasks, **more))
    assert main.run(["train", str(path), "--output_dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        ({"a": ["cat", "wolf"], "b": ["dog"]}, "the data has no class wolf"),
        ({"a": KIND["animal"], "b": ["ship"]}, "leaves out airplane, automobile, truck"),
        ({"a": [*KIND["animal"], *KIND["vehicle"]]}, "has one new label only"),
        (KIND | {"c": ["cat"]}, "names cat twice"),
    ],
)
def test_a_label_map_that_does_not_fit_is_refused(label_map, message, recipe):
    with pytest.raises(UserError, match=f"task kind: label_map: {message}"):
        MultiTask(recipe(CLASSES, {"name": "kind", "label_map": label_map}))


@pytest.mark.parametrize(
    "more",
    [
        {"mixup_alpha": 0.2},
        {"cutmix_alpha": 1.0},
        {"temperature_scaling": True},
        {"tta": "flip"},
        {"monitor_features": True},
        {"method": "linear"},
    ],
)
def test_what_means_nothing_for_several_tasks_is_refused(more, recipe):
    with pytest.raises(UserError, match=next(iter(more))):
        asked = recipe(CLASSES, KINDS, **more)
        find_objective(asked)(asked)


def test_label_map_works_for_a_single_task(tiny, train, tmp_path, capsys):
    run = train("run", tiny("resnet"), label_map=KIND, max_train_samples=20, num_train_epochs=1)
    assert run.metrics["labels"] == ["animal", "vehicle"]  # in the order of the recipe's file
    assert main.run(["evaluate", str(run.path), "--json", "--precision", "fp32"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["test_accuracy"] == run.metrics["test_accuracy"]


def test_a_damaged_list_of_tasks_is_refused(joint, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(joint.path, folder)
    for tasks in ([{"name": "a"}], [{"name": "a", "labels": ["x"]}], "ab", [1]):
        tiny_models.edit_config(folder, tasks=tasks)
        assert (
            main.run(["predict", str(folder), str(folder / "plots" / "learning_curves.png")]) == 2
        )
        assert "its tasks are damaged" in capsys.readouterr().err


def test_the_command_line_takes_tasks_as_json(tiny, tmp_path):
    words = json.dumps([CLASSES, KINDS])
    made = make_recipe("mine", {"objective": "multi_task"}, {"tasks": words})
    assert made.tasks == [CLASSES, KINDS]
    hidden = made.public()
    assert hidden.tasks == made.tasks
    elsewhere = make_recipe(
        "mine",
        {"objective": "multi_task", "tasks": [CLASSES, {"name": "b", "dataset_name": "/a/c"}]},
    )
    assert elsewhere.public().tasks[1]["dataset_name"] == "c"
