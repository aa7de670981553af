"""The pictures of a run, each a matplotlib Figure made from plain numbers and drawn without a
display.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hf_cifar.evaluation.metrics import wilson
from hf_cifar.reporting.predictions import confident_mistakes

log = logging.getLogger(__name__)
# Okabe and Ito's colours, which colour-blind readers can tell apart too.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8C8C8C"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same letters
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "legend.edgecolor": "none",
    "figure.dpi": 130,
}
Point = tuple[int, float]


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG without the metadata that names the software, so equal figures are equal bytes."""
    FigureCanvasAgg(figure)
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, dpi=STYLE["figure.dpi"], metadata={"Software": None})


def curve(history: list[dict[str, Any]], *names: str) -> list[Point]:
    """(step, value) of the first of `names` that an entry of the Trainer's log_history holds,
    finite values only.
    """
    points = []
    for entry in history:
        value = next((entry[name] for name in names if entry.get(name) is not None), None)
        if value is not None and "step" in entry and math.isfinite(value):
            points.append((entry["step"], value))
    return points


def learning_curves(history: list[dict[str, Any]], best_step: int | None = None) -> Figure | None:
    """Loss, validation accuracy and learning rate over optimizer steps; None when the history has
    no such figure.
    """
    train = curve(history, "loss")
    validation = curve(history, "eval_loss", "validation_loss")
    accuracy = curve(history, "eval_accuracy", "validation_accuracy")
    rate = curve(history, "learning_rate")
    panels = [
        name
        for name, there in (("loss", train or validation), ("acc", accuracy), ("lr", rate))
        if there
    ]
    if not panels:
        return None
    heights = {"loss": 3.0, "acc": 2.4, "lr": 1.4}
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(7.5, 0.6 + sum(heights[name] for name in panels)), layout="constrained"
        )
        grid = figure.subplots(
            len(panels),
            1,
            sharex=True,
            squeeze=False,
            height_ratios=[heights[name] for name in panels],
        )
        axes = dict(zip(panels, grid[:, 0], strict=True))
        if "loss" in axes:
            _line(axes["loss"], train, BLUE, "train", marker="")
            _line(axes["loss"], validation, ORANGE, "validation")
            axes["loss"].set_ylabel("loss")
            axes["loss"].set_ylim(bottom=0)
            axes["loss"].legend(loc="upper right")
        if "acc" in axes:
            _line(axes["acc"], accuracy, ORANGE, "validation")
            axes["acc"].set_ylabel("validation accuracy")
            axes["acc"].yaxis.set_major_formatter(PercentFormatter(1))
        if "lr" in axes:
            _line(axes["lr"], rate, GREY, "", marker="")
            axes["lr"].set_ylabel("learning rate")
            axes["lr"].set_ylim(bottom=0)
            axes["lr"].ticklabel_format(axis="y", scilimits=(-2, 2))
        last = max(step for points in (train, validation, accuracy, rate) for step, _ in points)
        for axis in axes.values():
            axis.set_xlim(0, last * 1.02)
            if best_step is not None:
                axis.axvline(best_step, color=GREEN, linestyle="--", linewidth=1.2)
        if best_step is not None and "acc" in axes:
            axes["acc"].annotate(
                f"saved: step {best_step:,} ",
                (best_step, 0.04),
                xycoords=("data", "axes fraction"),
                ha="right" if best_step > last / 2 else "left",
                color=GREEN,
            )
        figure.align_ylabels()
        lowest = grid[-1, 0]
        lowest.set_xlabel("step")
        lowest.xaxis.set_major_locator(MaxNLocator(integer=True))
        return figure


def _line(axes: Axes, points: list[Point], color: str, label: str, marker: str = "o") -> None:
    # A single point has no line, so it needs a marker to be seen.
    if points:
        marker = "o" if len(points) == 1 else marker
        axes.plot(
            *zip(*points, strict=True),
            color=color,
            label=label,
            marker=marker,
            markersize=4,
            linewidth=1.5,
        )


def confusion_matrix(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    """Rows are true classes, shaded by share of the row; counts are written in up to 20 classes."""
    counts = np.asarray(matrix)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    classes = len(names)
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(7.5, 6.1), layout="constrained")
        axes = figure.subplots()
        # A square root brings out the few mistakes beside the many hits.
        image = axes.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        if classes <= 40:
            axes.set_xticks(
                range(classes), [_short(name) for name in names], rotation=45, ha="right"
            )
            axes.set_yticks(range(classes), [_short(name) for name in names])
        if classes <= 20:
            for row, column in np.argwhere(counts > 0):
                light = share[row, column] > 0.3
                axes.text(
                    column,
                    row,
                    f"{counts[row, column]}",
                    ha="center",
                    va="center",
                    color="white" if light else "black",
                    fontsize=10 if classes <= 12 else 7,
                )
        bar = figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
        ticks = [0, 0.01, 0.05, 0.2, 0.5, 1]
        bar.set_ticks([math.sqrt(tick) for tick in ticks], labels=[f"{tick:.0%}" for tick in ticks])
        return figure


def per_class_accuracy(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    """Accuracy of each class with its 95 % Wilson interval, worst at the bottom; the 40 worst of
    many classes.
    """
    counts = np.asarray(matrix)
    rows = [
        (int(counts[c, c]), int(counts[c].sum()), names[c])
        for c in range(len(names))
        if counts[c].sum()
    ]
    rows.sort(key=lambda row: row[0] / row[1])
    shown = rows[:40]
    value = np.array([correct / total for correct, total, _ in shown])
    interval = np.array([wilson(correct, total) for correct, total, _ in shown])
    overall = sum(correct for correct, _, _ in rows) / sum(total for _, total, _ in rows)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 1.2 + 0.32 * len(shown)), layout="constrained")
        axes = figure.subplots()
        position = np.arange(len(shown))
        # Dots, not bars: an axis that need not start at 0 shows the differences among good classes.
        axes.errorbar(
            value,
            position,
            xerr=np.abs(interval.T - value),
            fmt="o",
            color=BLUE,
            ecolor=BLUE,
            elinewidth=1.5,
            capsize=3,
        )
        axes.axvline(
            overall, color=GREY, linestyle="--", linewidth=1.2, label=f"all classes: {overall:.1%}"
        )
        axes.set_yticks(position, [_short(name) for _, _, name in shown])
        axes.set_ylim(-0.7, len(shown) - 0.3)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        left = "accuracy with 95% interval"
        axes.set_xlabel(
            left
            if len(shown) == len(rows)
            else f"{left}, the {len(shown)} worst of {len(rows)} classes"
        )
        axes.grid(axis="y", visible=False)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
        return figure


def mistakes(pictures: Sequence[np.ndarray], captions: Sequence[tuple[str, str, float]]) -> Figure:
    """Pictures (uint8, H x W x 3) in rows of five, each with its (true class, predicted class,
    confidence).
    """
    columns = min(5, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    with matplotlib.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.08)
        figure = Figure(figsize=(1.7 * columns, 2.05 * rows), layout=layout)
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.axis("off")
        for axes, picture, (true, predicted, confidence) in zip(
            grid, pictures, captions, strict=False
        ):
            # Large pixels as they are: smoothing would invent detail that the model never saw.
            axes.imshow(
                picture, interpolation="nearest" if max(picture.shape) < 200 else "antialiased"
            )
            axes.set_title(
                f"{_short(true, 12)} → {_short(predicted, 12)}\n{confidence:.1%}", fontsize=9
            )
        return figure


def reliability(bins: Sequence[dict[str, Any]], ece: float) -> Figure:
    """Accuracy against confidence in the bins of the calibration error, and how many samples each
    bin holds.
    """
    filled = [b for b in bins if b["count"]]
    middle = [(b["low"] + b["high"]) / 2 for b in filled]
    width = [(b["high"] - b["low"]) * 0.92 for b in filled]
    share = [b["count"] / sum(b["count"] for b in filled) for b in filled]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.8, 6.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
        upper.plot(
            [0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2, label="perfect calibration"
        )
        upper.bar(middle, [b["accuracy"] for b in filled], width, color=BLUE, label="accuracy")
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
        lower.bar(middle, share, width, color=GREY)
        lower.set_xlim(0, 1)
        lower.set_xlabel("confidence")
        lower.set_ylabel("share of samples")
        lower.xaxis.set_major_formatter(PercentFormatter(1))
        lower.yaxis.set_major_formatter(PercentFormatter(1))
        return figure


def _short(name: str, length: int = 18) -> str:
    # "$" would start mathematics in matplotlib.
    return (name if len(name) <= length else name[: length - 1] + "…").replace("$", r"\$")


def range_test(
    rates: list[float], losses: list[float], smoothed: list[float], suggestion: float
) -> Figure:
    """Loss against a rising learning rate, on a logarithmic axis, with the rate that is suggested."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(rates, losses, color=GREY, linewidth=0.8, label="loss of a step")
        axes.plot(rates, smoothed, color=BLUE, linewidth=1.8, label="smoothed")
        axes.axvline(
            suggestion, color=ORANGE, linestyle="--", label=f"falls fastest: {suggestion:.2g}"
        )
        axes.set_xscale("log")
        axes.set_ylim(0, 1.3 * max(smoothed[0], min(smoothed)))
        axes.set_xlabel("learning rate")
        axes.set_ylabel("loss")
        axes.legend(loc="lower left")
    return figure


PLOTS = {
    "learning_curves": "Loss, validation accuracy and learning rate over the training steps",
    "confusion_matrix": "Confusion matrix on the test split",
    "per_class_accuracy": "Accuracy of each class with its 95 % interval",
    "mistakes": "The most confident mistakes: true class → predicted class and its probability",
    "reliability": "Reliability diagram: accuracy against confidence",
}
"""File stem under plots/ and its caption in the card, in the card's order."""


def write_plots(
    folder: Path, metrics: dict[str, Any], pictures: Callable[[Sequence[int]], list[np.ndarray]]
) -> list[str]:
    """Draws `plots/*.png` of a run from its metrics and its predictions.parquet.

    Args:
        folder: the run folder; plots of an earlier evaluation in it are removed.
        metrics: the content of metrics.json; a plot whose figures are absent is left out.
        pictures: gives the test images of the named rows as uint8, H x W x 3.

    Returns:
        Paths of the files written, relative to `folder`.
    """
    from hf_cifar.reporting import plots

    names = metrics.get("labels", [])
    matrix = metrics.get("test_confusion_matrix")
    figures = {
        "learning_curves": plots.learning_curves(
            metrics.get("history") or [], metrics.get("best_step")
        )
    }
    if matrix and names:
        figures["confusion_matrix"] = plots.confusion_matrix(matrix, names)
        figures["per_class_accuracy"] = plots.per_class_accuracy(matrix, names)
    if names and (folder / "predictions.parquet").is_file():
        wrong = confident_mistakes(folder)
        if wrong:
            figures["mistakes"] = plots.mistakes(
                pictures([index for index, *_ in wrong]),
                [(names[label], names[guess], confidence) for _, label, guess, confidence in wrong],
            )
    if metrics.get("test_calibration") and metrics.get("test_ece") is not None:
        figures["reliability"] = plots.reliability(metrics["test_calibration"], metrics["test_ece"])

    (folder / "plots").mkdir(exist_ok=True)
    written = []
    for stem in PLOTS:
        path = folder / "plots" / f"{stem}.png"
        path.unlink(missing_ok=True)
        figure = figures.get(stem)
        if figure is not None:
            plots.save(figure, path)
            written.append(f"plots/{stem}.png")
    return written
