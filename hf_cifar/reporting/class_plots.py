"""Plots of a classifier on the test split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import PercentFormatter

from hf_cifar.evaluation.metrics import wilson
from hf_cifar.reporting.plot_style import BLUE, GREY, ORANGE, PLAIN, plot_labels

NAMED_CLASSES = 40  # most classes that a plot names
COUNTED_CLASSES = 20  # most classes whose confusions are written as numbers


def confusion_matrix(matrix: Sequence[Sequence[int]], class_names: Sequence[str]) -> Figure:
    """Draw the confusion matrix: rows are true classes, shaded by their share of the row."""
    counts = np.asarray(matrix)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    classes = len(class_names)
    figure = Figure(figsize=(7.5, 6.1), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=False)
    # A square root makes the few mistakes visible beside the many hits.
    image = axes.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if classes <= NAMED_CLASSES:
        labels = plot_labels(class_names)
        axes.set_xticks(range(classes), labels, rotation=45, ha="right", **PLAIN)
        axes.set_yticks(range(classes), labels, **PLAIN)
    if classes <= COUNTED_CLASSES:
        for row, column in np.argwhere(counts > 0):
            axes.text(
                column,
                row,
                f"{counts[row, column]}",
                ha="center",
                va="center",
                color="white" if share[row, column] > 0.3 else "black",
                fontsize=10 if classes <= 12 else 7,
            )
    bar = figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    ticks = [0, 0.01, 0.05, 0.2, 0.5, 1]
    bar.set_ticks([math.sqrt(tick) for tick in ticks], labels=[f"{tick:.0%}" for tick in ticks])
    return figure


def per_class_accuracy(matrix: Sequence[Sequence[int]], class_names: Sequence[str]) -> Figure:
    """Draw the accuracy of each class with its 95 % Wilson interval, worst at the bottom; of many
    classes the worst ones.
    """
    counts, labels = np.asarray(matrix), plot_labels(class_names)
    rows = [
        (int(counts[c, c]), int(counts[c].sum()), label)
        for c, label in enumerate(labels)
        if counts[c].sum()
    ]
    rows.sort(key=lambda row: row[0] / row[1])
    shown = rows[:NAMED_CLASSES]
    accuracy = np.array([correct / total for correct, total, _ in shown])
    interval = np.array([wilson(correct, total) for correct, total, _ in shown])
    overall = sum(correct for correct, _, _ in rows) / sum(total for _, total, _ in rows)
    figure = Figure(figsize=(7.5, 1.2 + 0.32 * len(shown)), layout="constrained")
    axes = figure.subplots()
    positions = np.arange(len(shown))
    # Dots, not bars: an axis that need not start at 0 shows the differences among good classes.
    axes.errorbar(
        accuracy,
        positions,
        xerr=np.abs(interval.T - accuracy),
        fmt="o",
        color=BLUE,
        ecolor=BLUE,
        elinewidth=1.5,
        capsize=3,
    )
    axes.axvline(
        overall, color=GREY, linestyle="--", linewidth=1.2, label=f"all classes: {overall:.1%}"
    )
    axes.set_yticks(positions, [label for _, _, label in shown], **PLAIN)
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    worst = f", the {len(shown)} worst of {len(rows)} classes" if len(shown) < len(rows) else ""
    axes.set_xlabel(f"accuracy with 95% interval{worst}")
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
    return figure


def mistakes(
    pictures: Sequence[np.ndarray],
    wrong: Sequence[tuple[int, int, int, float]],
    class_names: Sequence[str],
) -> Figure:
    """Draw pictures in rows of five, each with its true class, predicted class and probability.

    pictures: uint8 [H, W, 3] each. wrong: what `confident_mistakes` says of each.
    """
    labels = plot_labels(class_names, most=12)
    columns = min(5, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.08)
    figure = Figure(figsize=(1.7 * columns, 2.05 * rows), layout=layout)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, picture, (_, label, prediction, probability) in zip(
        grid, pictures, wrong, strict=False
    ):
        # Small pictures keep their pixels: smoothing would invent detail that the model never saw.
        smoothing = "nearest" if max(picture.shape) < 200 else "antialiased"
        axes.imshow(picture, interpolation=smoothing)
        title = f"{labels[label]} → {labels[prediction]}\n{probability:.1%}"
        axes.set_title(title, fontsize=9, **PLAIN)
    return figure


def reliability(bins: Sequence[dict[str, Any]], ece: float) -> Figure:
    """Draw accuracy against confidence in the bins of the calibration error, and the share of
    samples in each bin.

    bins: as in `test_calibration` of metrics.json. ece: the expected calibration error.
    """
    filled = [b for b in bins if b["count"]]
    total = sum(b["count"] for b in filled)
    middles = [(b["low"] + b["high"]) / 2 for b in filled]
    widths = [(b["high"] - b["low"]) * 0.92 for b in filled]
    figure = Figure(figsize=(5.8, 6.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    upper.plot(
        [0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2, label="perfect calibration"
    )
    upper.bar(middles, [b["accuracy"] for b in filled], widths, color=BLUE, label="accuracy")
    upper.scatter(
        [b["confidence"] for b in filled],
        [b["accuracy"] for b in filled],
        color=ORANGE,
        edgecolors="white",
        zorder=3,
        label="at the bin's mean confidence",
    )
    upper.set_ylim(0, 1.02)
    upper.set_ylabel("accuracy")
    upper.yaxis.set_major_formatter(PercentFormatter(1))
    upper.set_title(f"Expected calibration error {ece:.2%} ({len(bins)} bins)")
    upper.legend(loc="upper left")
    lower.bar(middles, [b["count"] / total for b in filled], widths, color=GREY)
    lower.set_xlim(0, 1)
    lower.set_xlabel("confidence")
    lower.set_ylabel("share of samples")
    lower.xaxis.set_major_formatter(PercentFormatter(1))
    lower.yaxis.set_major_formatter(PercentFormatter(1))
    return figure
