"""Paired tests against scipy's bootstrap, a binomial by hand, and predictions of known mistakes."""

import json

import numpy as np
import pytest
from helpers.runs import LABELS
from scipy.stats import bootstrap

from hf_cifar.errors import UserError
from hf_cifar.evaluation.paired_test import compare_runs, holm, paired_test
from hf_cifar.reporting.multi_label_predictions import write_label_set_predictions
from hf_cifar.reporting.predictions import write_predictions


def right(images: int, *wrong: int) -> np.ndarray:
    correct = np.ones(images, bool)
    correct[list(wrong)] = False
    return correct


def test_mcnemar_by_hand():
    # 2 and 10 images that one side alone gets right: 2 * (1 + 12 + 66) / 2 ** 12
    result = paired_test(right(100, *range(10)), right(100, 20, 21))
    assert (result.only_first_right, result.only_second_right) == (2, 10)
    assert result.p_value == pytest.approx(158 / 4096)
    assert result.difference == pytest.approx(-0.08)


def test_equal_answers_differ_by_nothing():
    result = paired_test(right(50, 1, 2), right(50, 1, 2))
    assert (result.p_value, result.difference, result.low, result.high) == (1.0, 0.0, 0.0, 0.0)


def test_the_interval_is_scipys():
    random = np.random.default_rng(0)
    first, second = random.random(400) < 0.9, random.random(400) < 0.85
    result = paired_test(first, second)
    reference = bootstrap(
        (first.astype(float), second.astype(float)),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        paired=True,
        method="percentile",
        random_state=1,
    ).confidence_interval
    assert (result.low, result.high) == pytest.approx((reference.low, reference.high), abs=0.004)
    assert paired_test(first, second) == result


def test_holm_by_hand():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


@pytest.fixture
def scored(tmp_path):
    """`scored(name, wrong, ...)`: the folder of a run that gets the images `wrong` of 200 wrong."""

    def write(name, wrong, *, images=200, labels=None, names=LABELS, digest="d"):
        folder = tmp_path / name
        folder.mkdir()
        truth = np.arange(images) % 10 if labels is None else labels
        probabilities = np.eye(10)[truth]
        probabilities[wrong] = np.roll(probabilities[wrong], 1, axis=1)
        write_predictions(folder, np.arange(images), truth, probabilities, names)
        (folder / "metrics.json").write_text(json.dumps({"dataset_fingerprint": digest}))
        return str(folder)

    return write


def test_three_runs(scored):
    runs = [
        scored("good", [0]),
        scored("same", [1]),
        scored("bad", list(range(100, 140))),
    ]
    result = compare_runs(runs)
    assert [run["accuracy"] for run in result["runs"]] == [0.995, 0.995, 0.8]
    pairs = {(pair["first"], pair["second"]): pair for pair in result["pairs"]}
    assert len(pairs) == 3 and pairs[runs[0], runs[1]]["p_value"] == 1.0
    worse = pairs[runs[0], runs[2]]
    assert worse["difference"] == pytest.approx(0.195)
    assert worse["low"] < 0.195 < worse["high"]
    assert worse["p_value"] < worse["p_adjusted"] < 1e-6
    assert "no more than chance" in result["sentence"]


def test_a_better_run_is_named_whatever_its_place(scored):
    bad, good = scored("bad", list(range(100, 140))), scored("good", [0])
    sentence = compare_runs([bad, good])["sentence"]
    assert sentence.startswith(f"{good} is better than {bad} by 19.50 points on 200 images")
    assert sentence.endswith("which is more than chance.") and "interval 14" in sentence


@pytest.mark.parametrize(
    ("other", "part"),
    [
        ({"images": 100}, "200 images"),
        ({"names": list("abcdefghij")}, "other classes"),
        ({"labels": np.arange(200)[::-1] % 10}, "other test images"),
    ],
)
def test_other_images_are_refused(scored, other, part):
    with pytest.raises(UserError, match=part):
        compare_runs([scored("first", [0]), scored("second", [0], **other)])


def test_damaged_predictions_are_refused(scored, tmp_path):
    runs = [scored("first", [0]), scored("second", [0])]
    (tmp_path / "second" / "predictions.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="damaged"):
        compare_runs(runs)


def test_a_picture_of_several_labels_is_right_in_all_of_them_or_wrong(tmp_path):
    truth = np.random.default_rng(0).random((100, 3)) < 0.5
    runs = []
    for name, wrong in (("good", []), ("bad", range(30))):
        (tmp_path / name).mkdir()
        answers = truth.astype(float)
        answers[wrong, 1] = 1 - answers[wrong, 1]
        write_label_set_predictions(tmp_path / name, truth, answers, ["a", "b", "c"])
        (tmp_path / name / "metrics.json").write_text('{"dataset_fingerprint": "d"}')
        runs.append(str(tmp_path / name))
    result = compare_runs(runs)
    assert [run["accuracy"] for run in result["runs"]] == [1.0, 0.7]
    assert result["pairs"][0]["only_first_right"] == 30 and "more than chance" in result["sentence"]
