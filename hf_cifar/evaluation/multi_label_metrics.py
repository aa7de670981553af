"""How good answers are where a picture has several labels, or none. scikit-learn computes them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from hf_cifar.evaluation.metrics import check_outputs, wilson

THRESHOLD = 0.5  # from this probability on, a picture counts as having the label


def multi_label_metrics(
    probabilities: np.ndarray, targets: np.ndarray, label_names: list[str], prefix: str = "test"
) -> dict[str, Any]:
    """Return everything that a run reports about one split, as JSON types.

    Args:
        probabilities: [N, C] float in 0..1, each label's own.
        targets: [N, C] bool.
        label_names: C names.
        prefix: keys are `{prefix}_map` and so on.

    Returns:
        `_accuracy` (exact match: pictures with all labels right), `_accuracy_ci95` [low, high],
        `_f1_macro` and `_f1_micro`, all at a probability of 0.5; `_map` (mean average precision of
        the labels), `_auroc_macro`, `_per_label` {name: {average_precision, auroc, f1, samples}}
        and `_samples`. Means are over the labels that some pictures have; for AUROC, and some have
        not. What no label allows is absent.

    Raises UserError where there are no samples or outputs are not finite.
    """
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

    check_outputs(probabilities)
    answers = probabilities >= THRESHOLD
    per_label: dict[str, dict[str, float]] = {}
    for number, name in enumerate(label_names):
        truth, scores = targets[:, number], probabilities[:, number]
        row: dict[str, float] = {"samples": int(truth.sum())}
        if truth.any():
            row["average_precision"] = float(average_precision_score(truth, scores))
            row["f1"] = float(f1_score(truth, answers[:, number], zero_division=0))
        if truth.any() and not truth.all():
            row["auroc"] = float(roc_auc_score(truth, scores))
        per_label[name] = row
    exact = int((answers == targets).all(axis=1).sum())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no picture has a label, and none was given one
        f1_micro = float(f1_score(targets, answers, average="micro", zero_division=0))
    means = {
        "map": _mean(per_label, "average_precision"),
        "f1_macro": _mean(per_label, "f1"),
        "auroc_macro": _mean(per_label, "auroc"),
    }
    values = {name: value for name, value in means.items() if value is not None} | {
        "f1_micro": f1_micro,
        "accuracy": exact / len(targets),
        "accuracy_ci95": list(wilson(exact, len(targets))),
        "per_label": per_label,
        "samples": len(targets),
    }
    return {f"{prefix}_{name}": value for name, value in values.items()}


def _mean(per_label: dict[str, dict[str, float]], metric: str) -> float | None:
    values = [row[metric] for row in per_label.values() if metric in row]
    return sum(values) / len(values) if values else None
