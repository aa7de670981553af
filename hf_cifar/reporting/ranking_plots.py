"""Plots of how well a classifier ranks the test images, whatever the threshold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_cifar.reporting.plot_style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PLAIN,
    PURPLE,
    VERMILION,
    drawing,
    plot_labels,
    save_figure,
)

COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE)
LINES = [(colour, style) for style in ("-", ":") for colour in COLOURS]
CHANCE: dict[str, Any] = {"color": GREY, "linestyle": "--", "linewidth": 1.2, "label": "chance"}


def ranking_curves(
    positive: np.ndarray,
    scores: np.ndarray,
    name: str,
    threshold: float | None = None,
) -> Figure:
    """Draw the ROC curve and the precision-recall curve of a two-class task, with the point of the
    threshold on both.

    positive: bool [N], both kinds at least once. scores: float [N], probabilities of the positive
    class. name: of that class, as `plot_labels` gives it.
    """
    from sklearn.metrics import (
        average_precision_score,
        precision_recall_curve,
        roc_auc_score,
        roc_curve,
    )

    figure, left, right = _two_panels()
    false_positives, true_positives, _ = roc_curve(positive, scores)
    left.plot([0, 1], [0, 1], **CHANCE)
    left.plot(false_positives, true_positives, color=BLUE)
    area = roc_auc_score(positive, scores)
    left.set_title(f"ROC curve of {name}: area {area:.4f}", **PLAIN)
    precision, recall, _ = precision_recall_curve(positive, scores)
    right.axhline(positive.mean(), **CHANCE)
    right.step(recall, precision, where="post", color=BLUE)
    average = average_precision_score(positive, scores)
    right.set_title(f"Precision and recall: average precision {average:.4f}")
    if threshold is not None:
        answers = scores >= threshold
        sensitivity = answers[positive].mean()
        point: dict[str, Any] = {"color": ORANGE, "edgecolors": "white", "zorder": 3, "s": 60}
        label = f"threshold {threshold:.3g}"
        left.scatter([answers[~positive].mean()], [sensitivity], label=label, **point)
        if answers.any():
            right.scatter([sensitivity], [positive[answers].mean()], label=label, **point)
    left.legend(loc="lower right")
    right.legend(loc="lower left")
    return figure


def ranking_curves_by_class(
    truth: np.ndarray, scores: np.ndarray, class_names: Sequence[str]
) -> Figure | None:
    """Draw the ROC curve and the precision-recall curve of each class against the rest; of more
    than ten classes, of the ten with the lowest average precision.

    truth: bool [N, C], whether each image is of each class. scores: float [N, C], probabilities.
    Classes that all images have, or none, are left out; returns None where no other is left.
    """
    from sklearn.metrics import (
        average_precision_score,
        precision_recall_curve,
        roc_auc_score,
        roc_curve,
    )

    drawable = np.flatnonzero(truth.any(0) & ~truth.all(0))
    averages = {c: average_precision_score(truth[:, c], scores[:, c]) for c in drawable}
    worst = sorted(drawable, key=lambda c: averages[c])[: len(LINES)]
    if not worst:
        return None
    figure, left, right = _two_panels()
    left.plot([0, 1], [0, 1], **CHANCE)
    labels = plot_labels(class_names)
    for c, (colour, style) in zip(worst, LINES, strict=False):
        line: dict[str, Any] = {"color": colour, "linestyle": style, "linewidth": 1.3}
        false_positives, true_positives, _ = roc_curve(truth[:, c], scores[:, c])
        area = roc_auc_score(truth[:, c], scores[:, c])
        left.plot(false_positives, true_positives, label=f"{labels[c]}: {area:.4f}", **line)
        precision, recall, _ = precision_recall_curve(truth[:, c], scores[:, c])
        label = f"{labels[c]}: {averages[c]:.4f}"
        right.step(recall, precision, where="post", label=label, **line)
    more = f", the {len(worst)} worst of {len(labels)} classes" if len(labels) > len(worst) else ""
    left.set_title(f"ROC curves{more}")
    right.set_title("Precision and recall")
    for axes, title in ((left, "area"), (right, "average precision")):
        for text in axes.legend(loc="lower center", title=title, fontsize=8).get_texts():
            text.set_parse_math(False)
    return figure


def ranking_curves_of_run(
    labels: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    positive: int = 1,
    threshold: float | None = None,
) -> Figure | None:
    """Draw the curves of the positive class where there are two classes, else those of each.

    labels: int [N]. probabilities: float [N, C]. positive, threshold: of two classes.
    """
    if len(class_names) == 2:
        name = plot_labels(class_names)[positive]
        return ranking_curves(labels == positive, probabilities[:, positive], name, threshold)
    truth = labels[:, None] == np.arange(len(class_names))
    return ranking_curves_by_class(truth, probabilities, class_names)


def write_ranking_curves(
    folder: Path, truth: np.ndarray, scores: np.ndarray, class_names: Sequence[str]
) -> None:
    """Write plots/ranking_curves.png of a run, or nothing where no class allows them.

    For the arguments see `ranking_curves_by_class`.
    """
    with drawing(class_names):
        if (figure := ranking_curves_by_class(truth, scores, class_names)) is not None:
            (folder / "plots").mkdir(exist_ok=True)
            save_figure(figure, folder / "plots" / "ranking_curves.png")


def _two_panels() -> tuple[Figure, Axes, Axes]:
    """Return a figure for ROC curves on the left and precision over recall on the right."""
    figure = Figure(figsize=(8.6, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.set_xlabel("1 − specificity")
    left.set_ylabel("sensitivity")
    right.set_xlabel("recall")
    right.set_ylabel("precision")
    for axes in (left, right):
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
    return figure, left, right
