"""Metrics against formulas written out here, and against other libraries' results."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_cifar.errors import UserError
from hf_cifar.evaluation.metrics import classification_metrics, trainer_metrics, wilson


def softmax(logits):
    exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponential / exponential.sum(axis=1, keepdims=True)


def names(classes):
    return [f"class {c}" for c in range(classes)]


@st.composite
def predictions(draw):
    """Probabilities [N, C], some of them exactly 0 or 1, and labels [N]."""
    rng = np.random.Generator(np.random.Philox(draw(st.integers(0, 2**32))))
    samples, classes = draw(st.integers(1, 60)), draw(st.integers(2, 12))
    sharpness = draw(st.sampled_from([0.3, 2.0, 30.0, 2000.0]))
    logits = rng.normal(size=(samples, classes)) * sharpness
    labels = rng.integers(0, classes, samples)
    return softmax(logits).astype(draw(st.sampled_from([np.float32, np.float64]))), labels


@given(st.integers(0, 10_000), st.integers(1, 10_000))
@example(0, 1)
@example(10_000, 10_000)
def test_wilson_is_the_interval_of_the_formula(correct, total):
    """Wilson 1927, as textbooks write it."""
    correct = min(correct, total)
    share, z = correct / total, 1.959963984540054
    scale = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    low, high = wilson(correct, total)
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert 0 <= low <= share <= high <= 1
    assert type(low) is type(high) is float


def test_wilson_at_the_ends():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 50)[0] == 0.0
    assert wilson(50, 50)[1] == 1.0
    assert wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)  # the textbook case
    for correct, total in [(-1, 5), (6, 5), (1, 0)]:
        with pytest.raises(ValueError):
            wilson(correct, total)


@settings(max_examples=40, deadline=None)
@given(predictions())
def test_against_the_formulas(data):
    p, y = data
    n, classes = p.shape
    values = classification_metrics(p, y, names(classes), "validation")
    q = p.astype(np.float64)
    q /= q.sum(axis=1, keepdims=True)
    guess = q.argmax(axis=1)

    def value(name):
        return values[f"validation_{name}"]

    correct = sum(int(a) == int(b) for a, b in zip(guess, y, strict=True))
    assert value("accuracy") == pytest.approx(correct / n)
    assert tuple(value("accuracy_ci95")) == wilson(correct, n)
    assert value("samples") == n
    assert value("nll") == pytest.approx(
        -np.mean([math.log(max(q[i, y[i]], 2.0**-52)) for i in range(n)]), rel=1e-6
    )

    f1 = []
    for c in range(classes):
        hit = sum((guess == c) & (y == c))
        if sum(guess == c) + sum(y == c):
            f1.append(2 * hit / (sum(guess == c) + sum(y == c)))
    assert value("f1_macro") == pytest.approx(np.mean(f1))

    matrix = np.zeros((classes, classes), int)
    for true, predicted in zip(y, guess, strict=True):
        matrix[true, predicted] += 1
    assert value("confusion_matrix") == matrix.tolist()
    assert value("per_class_accuracy") == {
        name: pytest.approx(matrix[c, c] / matrix[c].sum())
        for c, name in enumerate(names(classes))
        if matrix[c].sum()
    }

    if classes < 6:
        assert "validation_top5_accuracy" not in values
    else:
        better = (q > q[np.arange(n), y][:, None]).sum(axis=1)
        at_least = (q >= q[np.arange(n), y][:, None]).sum(axis=1)
        # Between the two lie the ties at fifth place, which may count or not.
        assert (
            (at_least <= 5).mean() - 1e-12 <= value("top5_accuracy") <= (better < 5).mean() + 1e-12
        )

    ece, seen = 0.0, 0
    for b in value("calibration"):
        inside = [
            i
            for i in range(n)
            if b["low"] < q[i].max() <= b["high"] or (q[i].max() == 0 and b["low"] == 0)
        ]
        assert b["count"] == len(inside)
        seen += len(inside)
        if inside:
            confidence, hits = np.mean(q[inside].max(axis=1)), np.mean(guess[inside] == y[inside])
            assert (b["confidence"], b["accuracy"]) == pytest.approx((confidence, hits))
            ece += len(inside) / n * abs(confidence - hits)
        else:
            assert b["confidence"] is None and b["accuracy"] is None
    assert len(value("calibration")) == 15 and seen == n
    assert value("ece") == pytest.approx(ece)
    assert json.loads(json.dumps(values, allow_nan=False)) == values


def test_by_hand():
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.55, 0.45]])
    values = classification_metrics(p, np.array([0, 1, 1, 0]), ["a", "b"])
    assert values["test_accuracy"] == 0.75
    assert values["test_per_class_accuracy"] == {"a": 1.0, "b": 0.5}
    assert values["test_confusion_matrix"] == [[2, 0], [1, 1]]
    # 0.9 and 0.8 lie in the bins 14 and 12 of 15, 0.7 and 0.55 in 11 and 9
    assert values["test_ece"] == pytest.approx((0.1 + 0.8 + 0.3 + 0.45) / 4)
    assert values["test_nll"] == pytest.approx(
        -(math.log(0.9) + math.log(0.2) + math.log(0.7) + math.log(0.55)) / 4
    )


def test_a_probability_of_zero_is_a_finite_loss():
    values = classification_metrics(np.array([[1.0, 0.0]]), np.array([1]), ["a", "b"])
    assert values["test_nll"] == pytest.approx(-math.log(2.0**-52))
    assert values["test_ece"] == 1.0


@pytest.mark.parametrize(
    ("p", "y", "error", "words"),
    [
        (np.zeros((0, 2)), np.zeros(0, int), UserError, "no samples"),
        (
            np.array([[0.5, 0.5], [np.nan, 1.0]]),
            np.array([0, 1]),
            UserError,
            "not finite for 1 of 2 .*row 1",
        ),
        (np.array([[0.5, 0.5]]), np.array([2]), UserError, "label 2 in row 0 is out of range"),
        (np.array([[0.5, 0.5]]), np.array([-1]), UserError, "label -1 in row 0 is out of range"),
        (np.array([[3.0, -1.0]]), np.array([0]), ValueError, "logits need a softmax"),
        (np.array([[0.5, 0.5]]), np.array([0, 1]), ValueError, "shapes"),
        (np.array([[0.5, 0.25, 0.25]]), np.array([0]), ValueError, "2 label names for 3 classes"),
    ],
)
def test_bad_input_is_named(p, y, error, words):
    with pytest.raises(error, match=words) as caught:
        classification_metrics(p, y, ["a", "b"])
    assert "\n" not in str(caught.value)


@settings(max_examples=20, deadline=None)
@given(predictions())
def test_the_trainer_gets_the_same_figures_from_logits(data):
    from transformers import EvalPrediction

    p, y = data
    logits = np.log(np.maximum(p.astype(np.float64), 1e-30)) + 7.5
    whole = classification_metrics(softmax(logits), y, names(p.shape[1]), "eval")
    for outputs in (logits, (logits, np.zeros((len(y), 3)))):
        values = trainer_metrics(EvalPrediction(predictions=outputs, label_ids=y))
        assert values == pytest.approx(
            {key: whole[f"eval_{key}"] for key in ("accuracy", "f1_macro", "nll")}
        )


def test_diverged_logits_are_named():
    from transformers import EvalPrediction

    logits = np.array([[0.0, 1.0], [np.inf, 0.0]], np.float32)
    with pytest.raises(UserError, match="lower learning_rate"):
        trainer_metrics(EvalPrediction(predictions=logits, label_ids=np.array([0, 1])))


def test_the_global_random_state_is_left_alone():
    before = np.random.get_state()[1].tolist()
    classification_metrics(np.array([[0.5, 0.5]]), np.array([0]), ["a", "b"])
    assert np.random.get_state()[1].tolist() == before


def test_needs_no_network_and_no_cache(tmp_path):
    """A new process, not told to be offline, ends at its first attempt to connect or to look up a
    name.
    """
    script = """
import os, socket
def refuse(*args, **kwargs):
    os.write(2, b"network was touched"); os._exit(9)
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
import numpy as np
from hf_cifar.evaluation.metrics import classification_metrics
print(classification_metrics(np.eye(7), np.arange(7), list("abcdefg"))["test_top5_accuracy"])
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {
        "HF_HOME": str(tmp_path / "hf"),
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1.0"
    assert not list(tmp_path.rglob("*.arrow"))
