"""The threshold of a two-class task: chosen on validation, kept in the run, used by `evaluate`."""

import json
import logging
import shutil

import numpy as np
import pytest
from helpers.pictures import class_folders
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_cifar.cli import main
from hf_cifar.errors import UserError
from hf_cifar.evaluation.classifier import load_classifier
from hf_cifar.evaluation.metrics import wilson
from hf_cifar.evaluation.operating_point import (
    choose_threshold,
    operating_point_metrics,
    read_operating_point,
)
from hf_cifar.objectives.classification import Classification
from hf_cifar.recipe.load import make_recipe
from hf_cifar.runs.run import Run

scores_with_ties = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1 - 2**-53, 1.0]), st.booleans()),
    min_size=2,
    max_size=60,
).filter(lambda pairs: len({truth for _, truth in pairs}) == 2)


@settings(max_examples=200, deadline=None)
@given(scores_with_ties, st.floats(0.01, 0.99))
def test_no_other_threshold_with_the_specificity_finds_more(pairs, target):
    scores = np.array([score for score, _ in pairs])
    truth = np.array([positive for _, positive in pairs])
    threshold = choose_threshold(scores, truth, target)
    assert np.isfinite(threshold)

    def sides(t):
        return (scores[truth] >= t).mean(), (scores[~truth] < t).mean()

    sensitivity, specificity = sides(threshold)
    assert specificity >= target - 1e-9
    for other in {*scores, 1.1}:
        if sides(other)[1] >= target:
            assert sides(other)[0] <= sensitivity
    near = np.abs(scores - threshold)  # in the middle: no score is moved across by rounding
    gap = near.min()
    assert gap > 0 or threshold in (*scores, np.nextafter(1.0, 2.0))


def test_sensitivity_and_specificity_by_hand():
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5], [0.2, 0.8], [0.7, 0.3]])
    y = np.array([0, 0, 1, 1, 1])
    values = operating_point_metrics(p, y, 1, 0.4, "test")
    assert values == {
        "test_sensitivity": pytest.approx(2 / 3),
        "test_sensitivity_ci95": list(wilson(2, 3)),
        "test_specificity": 0.5,
        "test_specificity_ci95": list(wilson(1, 2)),
    }
    assert operating_point_metrics(p[2:], y[2:], 0, 0.4, "test") == {
        "test_specificity": pytest.approx(1 / 3),  # two of three "positives" of class 0 above 0.4
        "test_specificity_ci95": list(wilson(1, 3)),
    }


@pytest.fixture
def defects(tmp_path):
    return str(class_folders(tmp_path / "cells", per_class=40, classes=("defect", "fine")))


def keys(data, **more):
    return {
        "dataset_name": data,
        "positive_class": "defect",
        "target_specificity": 0.8,
        "validation_fraction": 0.4,
        "test_fraction": 0.3,
        "max_train_samples": None,
        "max_eval_samples": None,
        "num_train_epochs": 1,
    } | more


@pytest.mark.parametrize("method", ["linear", "lora"])
def test_a_run_keeps_its_threshold_and_evaluate_applies_it(
    method, defects, tiny, train, capsys, caplog
):
    calibrated = {"temperature_scaling": method == "linear"}
    run = train("run", tiny("resnet"), method=method, **keys(defects, **calibrated))
    metrics, point = run.metrics, run.metrics["operating_point"]
    assert point["positive_class"] == "defect" and point["target_specificity"] == 0.8
    assert metrics["validation_specificity"] >= 0.8
    low, high = metrics["test_sensitivity_ci95"]
    assert low <= metrics["test_sensitivity"] <= high
    config = json.loads((run.path / "config.json").read_text())
    assert config["operating_point"] == point and config["positive_class"] == "defect"
    card = (run.path / "README.md").read_text()
    assert "| Average precision of defect |" in card and "(plots/ranking_curves.png)" in card
    assert "| Sensitivity |" in card and "taking a picture for defect if the probability" in card
    for split in ("test", "validation"):
        capsys.readouterr()
        words = ["--split", split, "--precision", "fp32", "--json"]
        assert main.run(["evaluate", str(run.path), *words]) == 0
        measured = json.loads(capsys.readouterr().out)
        assert measured["operating_point"] == point
        for name in ("sensitivity", "specificity", "average_precision", "auroc"):
            assert measured[f"{split}_{name}"] == pytest.approx(metrics[f"{split}_{name}"])
    assert main.run(["predict", str(run.path), defects, "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 80
    for answer in answers:
        score = {entry["label"]: entry["score"] for entry in answer["labels"]}["defect"]
        decided = "defect" if score >= point["threshold"] else "fine"
        assert answer["labels"][0]["label"] == decided and len(answer["labels"]) == 2
    later = keys(defects, positive_class=None, target_specificity=None)
    later |= {"model_name_or_path": str(run.path)}
    config = Classification(make_recipe("later", later)).load_backbone().model.config
    assert not hasattr(config, "operating_point") and not hasattr(config, "positive_class")
    main.run(["evaluate", str(run.path)])
    out = capsys.readouterr().out
    assert f"defect from a probability of {point['threshold']:.4f} on" in out
    assert "test_sensitivity" in out and "test_balanced_accuracy" in out


def test_the_positive_class_is_the_last_one_unless_it_is_named(defects, tiny, tmp_path, caplog):
    more = {"model_name_or_path": str(tiny("resnet")), "target_specificity": None}
    with caplog.at_level(logging.INFO):
        objective = Classification(make_recipe("mine", keys(defects, **more, positive_class=None)))
    assert objective.positive == 1 and "positive class: fine, the last one" in caplog.text
    assert Classification(make_recipe("mine", keys(defects, **more))).positive == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"dataset_name": "sample", "positive_class": None}, "only for two classes, and sample h"),
        ({"dataset_name": "sample", "target_specificity": None}, "positive_class: works only for"),
        ({"positive_class": "cat"}, "positive_class is cat, but the classes are defect, fine"),
        ({"validation_fraction": 0.0}, "chosen on validation; raise validation_fraction"),
        ({"max_eval_samples": 1}, "needs images of both classes; raise validation_fraction"),
        ({"objective": "masked_autoencoder"}, "does nothing with `objective: masked_autoenc"),
        ({"target_specificity": 1.0}, "target_specificity"),
        (
            {"target_specificity": None, "metric_for_best_model": "auroc", "max_eval_samples": 1},
            "auroc needs images of every class in validation, which has 1 of 2",
        ),
    ],
)
def test_a_threshold_that_a_task_has_not(more, words, defects):
    with pytest.raises(UserError, match=words) as caught:
        Classification(make_recipe("mine", keys(defects, **more)))
    assert "\n" not in str(caught.value)


def test_the_command_ends_with_one_line_and_code_2(tiny, tmp_path, capfd):
    words = ["--model_name_or_path", str(tiny("resnet")), "--dataset_name", "sample"]
    words += ["--target_specificity", "0.9", "--validation_fraction", "0.1"]
    words += ["--output_dir", str(tmp_path / "run")]
    assert main.run(["train", "quickstart", *words]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("hf-cifar: target_specificity: works only for two classes")


@pytest.mark.parametrize("metric", ["average_precision", "balanced_accuracy"])
def test_the_checkpoint_can_be_chosen_by_ranking(metric, defects, tiny, train):
    more = {"metric_for_best_model": metric, "num_train_epochs": 2, "learning_rate": 0.05}
    run: Run = train("run", tiny("resnet"), **keys(defects, **more))
    values = [entry[f"eval_{metric}"] for entry in run.metrics["history"] if "eval_loss" in entry]
    assert run.metrics[f"validation_{metric}"] == pytest.approx(max(values))


def test_a_config_with_another_value_is_refused(tiny, tmp_path):
    folder = shutil.copytree(tiny("resnet"), tmp_path / "net")
    config = json.loads((folder / "config.json").read_text())
    for value in (0.5, {"threshold": 0.5}, {"positive_class": "a", "threshold": 0.5}):
        (folder / "config.json").write_text(json.dumps(config | {"operating_point": value}))
        classifier = load_classifier(str(folder))
        with pytest.raises(UserError, match="operating_point is none of a model with these 10"):
            read_operating_point(classifier.model.config, classifier.labels, "net")
