"""How good the predictions are: accuracy and its interval, top-5, macro F1, per class, likelihood,
calibration.

The figures are scikit-learn's (the calibration error is ours) and are computed as `evaluate`
modules, made here instead of by `evaluate.load`, which would fetch a script from the Hub.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_cifar.errors import UserError

if TYPE_CHECKING:
    from transformers import EvalPrediction

CALIBRATION_BINS = 15
"""Equal-width confidence bins of the expected calibration error, as in Guo et al. 2017 (arXiv
1706.04599).
"""


def wilson(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927), which stays in [0, 1] and is sound near
    100 %.

    Args:
        correct: number of successes, 0 <= correct <= total.
        total: number of trials; with none, nothing is known and the interval is (0, 1).
        z: normal quantile; 1.959964 gives 95 %.

    Returns:
        (low, high), fractions in [0, 1].

    Raises:
        ValueError: `correct` is negative or larger than `total`.
    """
    if not 0 <= correct <= total:
        raise ValueError(f"correct={correct} must lie between 0 and total={total}")
    if total == 0:
        return 0.0, 1.0
    p = correct / total
    scale = 1 + z * z / total
    centre = (p + z * z / (2 * total)) / scale
    half = z / scale * (p * (1 - p) / total + z * z / (4 * total * total)) ** 0.5
    # At 0 and at `total` one end is exactly 0 or 1; rounding would leave 1e-17.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == total else min(1.0, centre + half)
    return low, high


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Share of samples whose most probable class is the label, with its 95 % Wilson interval."""
    from sklearn.metrics import accuracy_score

    correct = int(accuracy_score(labels, probabilities.argmax(axis=1), normalize=False))
    return {"accuracy": correct / len(labels), "accuracy_ci95": list(wilson(correct, len(labels)))}


def top5_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Share of samples whose label is among the five most probable classes; nothing below six
    classes.
    """
    from sklearn.metrics import top_k_accuracy_score

    classes = probabilities.shape[1]
    if classes < 6:
        return {}
    return {
        "top5_accuracy": float(
            top_k_accuracy_score(labels, probabilities, k=5, labels=range(classes))
        )
    }


def f1_macro(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Mean F1 over the classes that occur as a label or as a prediction."""
    from sklearn.metrics import f1_score

    score = f1_score(labels, probabilities.argmax(axis=1), average="macro", zero_division=0)
    return {"f1_macro": float(score)}


def nll(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Mean negative log-likelihood of the labels in nats; a probability of 0 counts as float64's
    epsilon.
    """
    from sklearn.metrics import log_loss

    return {"nll": float(log_loss(labels, probabilities, labels=range(probabilities.shape[1])))}


def confusion(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Counts [C][C] with the true class in the rows and the predicted one in the columns."""
    from sklearn.metrics import confusion_matrix

    classes = range(probabilities.shape[1])
    matrix = confusion_matrix(labels, probabilities.argmax(axis=1), labels=classes)
    return {"confusion_matrix": matrix.tolist()}


def calibration(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Expected calibration error (Guo et al. 2017, eq. 3) and the bins it is made of.

    Bin b holds the confidences in (b/15, (b+1)/15]; an empty bin has no confidence and no accuracy
    (None).
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    # Edges are not exact in binary, so a confidence of 1 could fall behind the last one.
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, CALIBRATION_BINS - 1)
    bins: list[dict[str, Any]] = []
    error = 0.0
    for b in range(CALIBRATION_BINS):
        inside = index == b
        count = int(inside.sum())
        mean_confidence = float(confidence[inside].mean()) if count else None
        mean_accuracy = float(correct[inside].mean()) if count else None
        if mean_confidence is not None and mean_accuracy is not None:
            error += count / len(labels) * abs(mean_accuracy - mean_confidence)
        bins.append(
            {
                "low": float(edges[b]),
                "high": float(edges[b + 1]),
                "confidence": mean_confidence,
                "accuracy": mean_accuracy,
                "count": count,
            }
        )
    return {"ece": error, "calibration": bins}


MetricFunction = Callable[[np.ndarray, np.ndarray], dict[str, Any]]


@cache
def _evaluate_module(function: MetricFunction) -> Any:
    """An `evaluate.Metric` that needs neither the Hub nor a cache folder."""
    import datasets
    import evaluate

    class ProbabilityMetric(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description=function.__doc__,
                citation="",
                inputs_description="predictions: probabilities, N x C; references: class indices, N",
                # No format: the "numpy" one would round float64 to float32.
                features=datasets.Features(
                    {
                        "predictions": datasets.Sequence(datasets.Value("float64")),
                        "references": datasets.Value("int64"),
                    }
                ),
            )

        def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
            return function(np.asarray(predictions, np.float64), np.asarray(references, np.int64))

    # The base class makes its cache folder even when it keeps everything in memory.
    with tempfile.TemporaryDirectory() as folder:
        return ProbabilityMetric(keep_in_memory=True, cache_dir=folder)


def _compute(
    functions: Sequence[MetricFunction], probabilities: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    import evaluate

    modules = evaluate.combine(
        {function.__name__: _evaluate_module(function) for function in functions}
    )
    return modules.compute(predictions=probabilities, references=labels)


def _checked(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities as float64 rows that sum to one, labels as int64."""
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(
            f"shapes must be [N, C] and [N], got {probabilities.shape} and {labels.shape}"
        )
    classes = probabilities.shape[1]
    if len(labels) == 0:
        raise UserError("there are no samples to score: give the split at least one image")
    finite = np.isfinite(probabilities).all(axis=1)
    if not finite.all():
        raise UserError(
            f"the model's outputs are not finite for {(~finite).sum()} of {len(finite)} samples (first: row "
            f"{int(finite.argmin())}): the training diverged, lower learning_rate or use another checkpoint"
        )
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(
            f"label {int(labels[row])} in row {row} is out of range: the model knows the {classes} classes "
            f"0 to {classes - 1}; check the data's labels against the model's id2label"
        )
    probabilities = probabilities.astype(np.float64)
    total = probabilities.sum(axis=1, keepdims=True)
    # float16 and bfloat16 softmax rows miss 1 by up to about 1e-2.
    if (probabilities < 0).any() or (abs(total - 1) > 0.05).any():
        raise ValueError(
            "rows of `probabilities` must be non-negative and sum to one; logits need a softmax first"
        )
    return probabilities / total, labels.astype(np.int64)


def classification_metrics(
    probabilities: np.ndarray, labels: np.ndarray, label_names: list[str], prefix: str = "test"
) -> dict[str, Any]:
    """Everything that a run reports about one split, as JSON types.

    Args:
        probabilities: [N, C] float; rows sum to one.
        labels: [N] int, 0 <= label < C.
        label_names: C names, in class order.
        prefix: the Trainer's `metric_key_prefix`; keys are `{prefix}_accuracy` and so on.

    Returns:
        `_accuracy`, `_accuracy_ci95` [low, high], `_top5_accuracy` (from six classes on),
        `_f1_macro`, `_per_class_accuracy` {name: value} (classes without samples are absent),
        `_nll` (nats), `_ece`, `_calibration` (15 bins), `_confusion_matrix` (rows are true
        classes), `_samples`. Fractions, not percent.

    Raises:
        UserError: no samples, outputs that are not finite, labels out of range.
        ValueError: shapes that do not fit, rows that are no probabilities.
    """
    probabilities, labels = _checked(probabilities, labels)
    if len(label_names) != probabilities.shape[1]:
        raise ValueError(f"{len(label_names)} label names for {probabilities.shape[1]} classes")
    functions = [accuracy, top5_accuracy, f1_macro, nll, calibration, confusion]
    values = _compute(functions, probabilities, labels)
    matrix = values["confusion_matrix"]
    values["per_class_accuracy"] = {
        name: row[c] / sum(row)
        for c, (name, row) in enumerate(zip(label_names, matrix, strict=True))
        if sum(row)
    }
    values["samples"] = len(labels)
    return {f"{prefix}_{name}": value for name, value in values.items()}


def trainer_metrics() -> Callable[[EvalPrediction], dict[str, float]]:
    """`compute_metrics` for the Trainer: accuracy, f1_macro and nll from logits; the Trainer adds
    the prefix.

    The function takes an `EvalPrediction` with logits [N, C] (or a tuple that begins with them) and
    integer labels [N], and raises UserError where logits are not finite.
    """

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        logits = (
            prediction.predictions[0]
            if isinstance(prediction.predictions, tuple)
            else prediction.predictions
        )
        logits = np.asarray(logits, np.float64)
        with np.errstate(invalid="ignore"):  # inf - inf; _checked says it in words
            exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities, labels = _checked(
            exponential / exponential.sum(axis=1, keepdims=True), np.asarray(prediction.label_ids)
        )
        values = _compute([accuracy, f1_macro, nll], probabilities, labels)
        del values["accuracy_ci95"]  # the Trainer logs scalars
        return values

    return compute_metrics
