"""The plots of a run folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hf_cifar.reporting import class_plots
from hf_cifar.reporting.plot_style import drawing, save_figure
from hf_cifar.reporting.predictions import confident_mistakes, read_scores
from hf_cifar.reporting.ranking_plots import ranking_curves_of_run
from hf_cifar.reporting.representation_plot import representation
from hf_cifar.reporting.training_plots import learning_curves

# Name of the file under plots/ -> its caption in the card, in the card's order.
PLOTS = {
    "learning_curves": "Loss, validation accuracy and learning rate over the training steps",
    "representation": "Quality of the validation images' features over the training steps",
    "confusion_matrix": "Confusion matrix on the test split",
    "per_class_accuracy": "Accuracy of each class with its 95 % interval",
    "ranking_curves": "ROC curves, and precision against recall, on the test split",
    "mistakes": "The most confident mistakes: true class → predicted class and its probability",
    "reliability": "Reliability diagram: accuracy against confidence",
}
# Likewise of plots that later commands add to a finished run.
ADDED_PLOTS = {
    "stress_accuracy": "Accuracy in percent under each corruption and severity",
    "stress_severity": "Accuracy over the severity: each corruption, and their mean",
    "stress_mistakes": "For each corruption, the picture that the model is most surely wrong about"
    " and gets right without the corruption",
}
# Likewise of a run that pretrains an encoder.
ENCODER_PLOTS = {
    "reconstructions": "Held-out pictures, what the model sees of them, and what it draws in place"
    " of the rest, over the training steps",
}


def write_plots(
    folder: Path, metrics: dict[str, Any], pictures: Callable[[Sequence[int]], list[np.ndarray]]
) -> list[str]:
    """Draw `plots/*.png` of a run from its metrics and its predictions.parquet.

    A plot whose figures are absent is left out, and removed where it stands from an earlier time.

    folder: the run folder. metrics: the content of metrics.json. pictures: gives the test images of
    the named rows as uint8 [H, W, 3].

    Returns the paths of the files written, relative to `folder`.
    """
    class_names = metrics.get("labels", [])
    (folder / "plots").mkdir(exist_ok=True)
    written = []
    with drawing(class_names):
        figures = _figures(folder, metrics, class_names, pictures)
        for name in PLOTS:
            path = folder / "plots" / f"{name}.png"
            path.unlink(missing_ok=True)
            if (figure := figures.get(name)) is not None:
                save_figure(figure, path)
                written.append(f"plots/{name}.png")
    return written


def _figures(
    folder: Path,
    metrics: dict[str, Any],
    class_names: list[str],
    pictures: Callable[[Sequence[int]], list[np.ndarray]],
) -> dict[str, Figure | None]:
    """Return the figures that the metrics have the numbers for, by the names in PLOTS."""
    history, matrix = metrics.get("history") or [], metrics.get("test_confusion_matrix")
    figures = {"learning_curves": learning_curves(history, metrics.get("best_step"))}
    figures["representation"] = representation(history)
    if matrix and class_names:
        figures["confusion_matrix"] = class_plots.confusion_matrix(matrix, class_names)
        figures["per_class_accuracy"] = class_plots.per_class_accuracy(matrix, class_names)
    if class_names and (folder / "predictions.parquet").is_file():
        if "test_auroc" in metrics:
            figures["ranking_curves"] = _ranking_curves(folder, metrics, class_names)
        wrong = confident_mistakes(folder)
        if wrong:
            shown = pictures([row for row, *_ in wrong])
            figures["mistakes"] = class_plots.mistakes(shown, wrong, class_names)
    if metrics.get("test_calibration") and metrics.get("test_ece") is not None:
        bins, ece = metrics["test_calibration"], metrics["test_ece"]
        figures["reliability"] = class_plots.reliability(bins, ece)
    return figures


def _ranking_curves(folder: Path, metrics: dict[str, Any], class_names: list[str]) -> Figure | None:
    positive = class_names.index(metrics.get("positive_class", class_names[-1]))
    threshold = (metrics.get("operating_point") or {}).get("threshold")
    return ranking_curves_of_run(*read_scores(folder), class_names, positive, threshold)
