"""How good predictions are: accuracy and its interval, top-5, macro F1, likelihood, calibration,
and how well they rank (`ranking_metrics`).

scikit-learn computes the figures, except the calibration error, and the `evaluate` library calls
it. The module is made here, because `evaluate.load` would fetch a script from the Hub.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_cifar.errors import UserError
from hf_cifar.evaluation.ranking_metrics import auroc, average_precision, balanced_accuracy

if TYPE_CHECKING:
    from transformers import EvalPrediction

# Equal-width confidence bins of the expected calibration error, as in Guo et al. 2017
# (arXiv 1706.04599).
CALIBRATION_BINS = 15
MetricFunction = Callable[[np.ndarray, np.ndarray], dict[str, Any]]


def wilson(correct: int, total: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a proportion as fractions (low, high).

    It stays in [0, 1] and is sound near 100 %. With no trials nothing is known: (0, 1).
    Raises ValueError unless 0 <= correct <= total.
    """
    from scipy.stats import binomtest

    if total == 0 and correct == 0:
        return 0.0, 1.0
    interval = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return the share of samples whose most probable class is the label, and its 95 % interval."""
    from sklearn.metrics import accuracy_score

    correct = int(accuracy_score(labels, probabilities.argmax(axis=1), normalize=False))
    return {"accuracy": correct / len(labels), "accuracy_ci95": list(wilson(correct, len(labels)))}


def top5_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return the share of samples whose label is among the five most probable of six classes or
    more.
    """
    from sklearn.metrics import top_k_accuracy_score

    classes = probabilities.shape[1]
    if classes < 6:
        return {}
    score = top_k_accuracy_score(labels, probabilities, k=5, labels=range(classes))
    return {"top5_accuracy": float(score)}


def f1_macro(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return the mean F1 over the classes that occur as a label or as a prediction."""
    from sklearn.metrics import f1_score

    score = f1_score(labels, probabilities.argmax(axis=1), average="macro", zero_division=0)
    return {"f1_macro": float(score)}


def nll(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return the mean negative log-likelihood of the labels in nats.

    A probability of 0 counts as float64's epsilon.
    """
    from sklearn.metrics import log_loss

    return {"nll": float(log_loss(labels, probabilities, labels=range(probabilities.shape[1])))}


def confusion(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return counts [C][C], with true classes in the rows and predicted ones in the columns."""
    from sklearn.metrics import confusion_matrix

    classes = range(probabilities.shape[1])
    matrix = confusion_matrix(labels, probabilities.argmax(axis=1), labels=classes)
    return {"confusion_matrix": matrix.tolist()}


def calibration(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return the expected calibration error (Guo et al. 2017, eq. 3) and the bins it is made of.

    Bin b holds the confidences in (b/15, (b+1)/15]. In an empty bin, confidence and accuracy are
    None.
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


@cache
def _metric() -> Any:
    """Return an `evaluate.Metric` that needs neither the Hub nor a cache folder."""
    import datasets
    import evaluate

    class ClassificationMetric(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            probabilities = datasets.Sequence(datasets.Value("float64"))
            return evaluate.MetricInfo(
                description=str(__doc__),
                citation="",
                inputs_description="predictions: probabilities [N, C]; references: labels [N]",
                # No format is set: numpy's would round float64 to float32.
                features=datasets.Features(
                    {"predictions": probabilities, "references": datasets.Value("int64")}
                ),
            )

        def _compute(
            self, predictions: Any, references: Any, functions: Sequence[MetricFunction]
        ) -> dict[str, Any]:
            probabilities = np.asarray(predictions, np.float64)
            labels = np.asarray(references, np.int64)
            results = [function(probabilities, labels) for function in functions]
            return {name: value for result in results for name, value in result.items()}

    # The base class makes its cache folder even when it keeps everything in memory.
    with tempfile.TemporaryDirectory() as folder:
        return ClassificationMetric(keep_in_memory=True, cache_dir=folder)


def check_outputs(outputs: np.ndarray) -> None:
    """Raise UserError for no samples, and for outputs, float [N, C], that are not finite."""
    if len(outputs) == 0:
        raise UserError("there are no samples to score: give the split at least one image")
    finite = np.isfinite(outputs).all(axis=1)
    if not finite.all():
        raise UserError(
            f"the model's outputs are not finite for {(~finite).sum()} of {len(finite)} samples"
            f" (first: row {int(finite.argmin())}): the training diverged, lower learning_rate or"
            " use another checkpoint"
        )


def _checked(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities as float64 rows that sum to one, and labels as int64.

    Raises UserError and ValueError as `classification_metrics` does.
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(
            f"shapes must be [N, C] and [N], got {probabilities.shape} and {labels.shape}"
        )
    classes = probabilities.shape[1]
    check_outputs(probabilities)
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(
            f"label {int(labels[row])} in row {row} is out of range: the model knows the {classes}"
            f" classes 0 to {classes - 1}; check the data's labels against the model's id2label"
        )
    probabilities = probabilities.astype(np.float64)
    total = probabilities.sum(axis=1, keepdims=True)
    # float16 and bfloat16 softmax rows miss 1 by up to about 1e-2.
    if (probabilities < 0).any() or (abs(total - 1) > 0.05).any():
        raise ValueError(
            "rows of `probabilities` must be non-negative and sum to one;"
            " logits need a softmax first"
        )
    return probabilities / total, labels.astype(np.int64)


def classification_metrics(
    probabilities: np.ndarray,
    labels: np.ndarray,
    label_names: list[str],
    prefix: str = "test",
    *,
    positive: int = -1,
) -> dict[str, Any]:
    """Return everything that a run reports about one split, as JSON types.

    Args:
        probabilities: [N, C] float; rows sum to one.
        labels: [N] int, 0 <= label < C.
        label_names: C names, in class order.
        prefix: the Trainer's `metric_key_prefix`; keys are `{prefix}_accuracy` and so on.
        positive: of two classes, the one whose average precision is meant; the last by default.

    Returns:
        `_accuracy`, `_accuracy_ci95` [low, high], `_top5_accuracy` (from six classes on),
        `_balanced_accuracy`, `_auroc` and `_average_precision` (if each class occurs), `_f1_macro`,
        `_per_class_accuracy` {name: value} (classes without samples are absent), `_nll` (nats),
        `_ece`, `_calibration` (15 bins), `_confusion_matrix` (rows are true classes), `_samples`.
        Fractions, not percent.

    Raises:
        UserError: no samples, outputs that are not finite, labels out of range.
        ValueError: shapes that do not fit, rows that are no probabilities.
    """
    probabilities, labels = _checked(probabilities, labels)
    if len(label_names) != probabilities.shape[1]:
        raise ValueError(f"{len(label_names)} label names for {probabilities.shape[1]} classes")
    functions = [accuracy, top5_accuracy, balanced_accuracy, f1_macro, nll, calibration, confusion]
    functions += [partial(auroc, positive=positive), partial(average_precision, positive=positive)]
    values = _metric().compute(predictions=probabilities, references=labels, functions=functions)
    matrix = values["confusion_matrix"]
    values["per_class_accuracy"] = {
        name: row[c] / sum(row)
        for c, (name, row) in enumerate(zip(label_names, matrix, strict=True))
        if sum(row)
    }
    values["samples"] = len(labels)
    return {f"{prefix}_{name}": value for name, value in values.items()}


def trainer_metrics(
    prediction: EvalPrediction, more: Sequence[MetricFunction] = ()
) -> dict[str, float]:
    """Return accuracy, f1_macro and nll, as the Trainer's `compute_metrics`; it adds the prefix.

    prediction: with logits [N, C], or a tuple that begins with them, and integer labels [N]. more:
    further metrics to compute.
    Raises UserError where logits are not finite.
    """
    outputs = prediction.predictions
    logits = np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs, np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf, which `_checked` refuses
        exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities, labels = _checked(
        exponential / exponential.sum(axis=1, keepdims=True), np.asarray(prediction.label_ids)
    )
    values = _metric().compute(
        predictions=probabilities, references=labels, functions=[accuracy, f1_macro, nll, *more]
    )
    del values["accuracy_ci95"]  # the Trainer logs single numbers
    return values
