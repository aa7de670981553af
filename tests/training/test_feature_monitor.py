"""Measures of features while a model trains."""

import json

import numpy as np
import pytest
from helpers.runs import assert_same_weights, without_drawing
from scipy.stats import special_ortho_group

from hf_cifar.cli import main
from hf_cifar.training.feature_monitor import fall, is_news, measures

MEASURES = ("knn_accuracy", "effective_rank", "class_separation", "cka")


def test_measures_of_features_whose_answer_is_known():
    random = np.random.default_rng(0)
    labels = np.arange(120) % 4
    apart = 5 * np.eye(8)[labels] + 0.1 * random.normal(size=(120, 8))
    turned = 3 * apart @ special_ortho_group.rvs(8, random_state=0)
    good = measures(apart.astype(np.float32), labels, turned.astype(np.float32))
    assert good["knn_accuracy"] == 1 and good["class_separation"] > 0.9
    assert good["cka"] == pytest.approx(1)
    noise = measures(random.normal(size=(120, 8)).astype(np.float32), labels, apart)
    assert noise["knn_accuracy"] < 0.5 and abs(noise["class_separation"]) < 0.1
    assert noise["cka"] < 0.3 and noise["effective_rank"] > 7
    collapsed = np.outer(1 + random.random(120), np.ones(8)).astype(np.float32)
    assert measures(collapsed, labels, apart)["effective_rank"] == pytest.approx(1, abs=0.01)


def entry(step, knn, rank, separation):
    return {
        "step": step,
        "eval_knn_accuracy": knn,
        "eval_effective_rank": rank,
        "eval_class_separation": separation,
    }


def test_forgetting_and_collapse_are_warned_of_and_learning_is_not():
    first = entry(10, 0.70, 50.0, 0.3)
    assert fall([first]) is None
    assert fall([first, entry(20, 0.80, 12.0, 0.6)]) is None  # classes close up as they are learned
    assert fall([first, {"loss": 1.0, "step": 15}, entry(20, 0.69, 49.0, 0.3)]) is None
    assert "forgets" in (fall([first, entry(20, 0.60, 50.0, 0.3)]) or "")
    assert "collapse" in (fall([first, entry(20, 0.69, 10.0, 0.2)]) or "")


def test_a_fall_is_told_when_it_begins_and_when_it_goes_further():
    history = [entry(10, 0.70, 50.0, 0.3), entry(20, 0.60, 50.0, 0.3)]
    assert is_news(history)
    history.append(entry(30, 0.59, 48.0, 0.3))
    assert fall(history) and not is_news(history)
    assert is_news([*history, entry(40, 0.50, 48.0, 0.3)])
    assert is_news([*history, entry(40, 0.58, 9.0, 0.1)])


@pytest.mark.parametrize("method", ["full", "partial", "lora"])
def test_a_run_is_watched_and_stays_the_same_run(method, tiny, train):
    keys = {"method": method, "validation_fraction": 0.1}
    plain = train("plain", tiny("vit"), **keys)
    watched = train("watched", tiny("vit"), monitor_features=True, **keys)
    assert_same_weights(plain, watched)
    evaluations = [e for e in watched.metrics["history"] if "eval_accuracy" in e]
    assert len(evaluations) == 2
    assert all(f"eval_{name}" in e for e in evaluations for name in MEASURES)
    assert isinstance(watched.metrics["feature_warnings"], list)
    assert (watched.path / "plots" / "representation.png").is_file()
    assert "plots/representation.png" in (watched.path / "README.md").read_text()
    assert not (plain.path / "plots" / "representation.png").exists()
    json.dumps(watched.metrics, allow_nan=False)


def test_a_learning_rate_that_ruins_the_features_is_warned_of(tiny, train):
    keys = {"num_train_epochs": 4, "max_train_samples": 80, "learning_rate": 3.0}
    run = train("run", tiny("vit"), monitor_features=True, optim="sgd", **keys)
    measured = [e for e in run.metrics["history"] if "eval_cka" in e]
    assert measured[-1]["eval_cka"] < 0.9


@pytest.mark.parametrize("keys", [{"validation_fraction": "0"}, {"eval_strategy": "no"}])
def test_without_evaluations_there_is_nothing_to_watch(keys, tiny, capfd):
    words = ["train", "quickstart", "--method", "full", "--monitor_features", "true"]
    for name, value in keys.items():
        words += [f"--{name}", value]
    with without_drawing():
        assert main.run(words) == 2
    assert "monitor_features" in capfd.readouterr().err
