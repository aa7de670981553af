"""A run that learned nothing, or less than its own nearest neighbours, says so."""

import numpy as np
import pytest

from hf_cifar.evaluation.metrics import classification_metrics
from hf_cifar.reporting.result_warnings import result_warnings


def scored(correct: int, images: int, classes: int = 3, split: str = "test") -> dict:
    """Return the metrics of answers whose first `correct` are right; classes are balanced."""
    labels = np.arange(images) % classes
    answers = np.where(np.arange(images) < correct, labels, (labels + 1) % classes)
    names = [f"class {number}" for number in range(classes)]
    return classification_metrics(np.eye(classes)[answers], labels, names, prefix=split)


@pytest.mark.parametrize(
    ("correct", "images", "warned"),
    [
        (40, 120, True),  # a third of three classes
        (20, 120, True),  # below chance
        (44, 120, True),  # within the interval of chance
        (60, 120, False),
        (120, 120, False),
        (4, 6, True),  # too few images to tell
    ],
)
def test_chance(correct, images, warned):
    lines = result_warnings(scored(correct, images))
    assert bool(lines) == warned
    if warned:
        (line,) = lines
        assert f"{correct / images:.1%} on {images} images" in line and "33.3%" in line
        assert "\n" not in line and "check the labels" in line


def test_chance_is_the_share_of_the_commonest_class():
    labels = np.array([0] * 90 + [1] * 10)
    metrics = classification_metrics(np.eye(2)[np.zeros(100, int)], labels, ["a", "b"])
    assert metrics["test_accuracy"] == 0.9
    (line,) = result_warnings(metrics)
    assert "90.0%" in line and "commonest class" in line


@pytest.mark.parametrize(
    ("neighbours", "warned"), [(0.85, True), (0.76, False), (0.70, False), (None, False)]
)
def test_below_its_own_nearest_neighbours_by_more_than_the_interval(neighbours, warned):
    metrics = scored(840, 1200) | {"knn_accuracy": neighbours}  # 70 %, interval to 72.5
    metrics["test_accuracy_ci95"][1] = 0.765
    lines = result_warnings(metrics)
    assert bool(lines) == warned
    if warned:
        assert "below the 85.0% of a nearest-neighbour classifier" in lines[0]


def test_without_test_the_validation_split_is_judged():
    assert "validation accuracy" in result_warnings(scored(40, 120, split="validation"))[0]
    assert result_warnings({}) == []
    assert result_warnings({"rmse": 0.3, "labels": []}) == []
