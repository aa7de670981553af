"""Plots of a training: its curves, and the search for a learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hf_cifar.reporting.plot_style import BLUE, GREEN, GREY, ORANGE, drawing, save_figure

Points = list[tuple[int, float]]  # (optimizer step, value)
PANEL_HEIGHTS = {"loss": 3.0, "accuracy": 2.4, "learning_rate": 1.4}  # inches


def write_learning_curves(
    folder: Path, metrics: Mapping[str, Any], accuracies: Mapping[str, str]
) -> None:
    """Write plots/learning_curves.png of a run from its metrics, or nothing where these have none.

    accuracies: as in `learning_curves`.
    """
    figure = learning_curves(metrics["history"], metrics.get("best_step"), accuracies)
    if figure is not None:
        (folder / "plots").mkdir(exist_ok=True)
        with drawing(list(accuracies.values())):
            save_figure(figure, folder / "plots" / "learning_curves.png")


def learning_curves(
    history: list[dict[str, Any]],
    best_step: int | None = None,
    accuracies: Mapping[str, str] = {"eval_accuracy": "validation"},
) -> Figure | None:
    """Draw loss, validation accuracy and learning rate over optimizer steps.

    history: the Trainer's `log_history`. best_step: the step that was saved, to be marked.
    accuracies: names of accuracies in the history -> what to call them, where there are several.
    Returns None if the history has none of these figures.
    """
    train_loss = _points(history, "loss")
    validation_loss = _points(history, "eval_loss")
    lines = {label: _points(history, name) for name, label in accuracies.items()}
    accuracy = [point for points in lines.values() for point in points]
    learning_rate = _points(history, "learning_rate")
    drawn = {
        "loss": train_loss or validation_loss,
        "accuracy": accuracy,
        "learning_rate": learning_rate,
    }
    panels = [name for name, points in drawn.items() if points]
    if not panels:
        return None
    heights = [PANEL_HEIGHTS[name] for name in panels]
    figure = Figure(figsize=(7.5, 0.6 + sum(heights)), layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    axes: dict[str, Axes] = dict(zip(panels, grid, strict=True))
    if "loss" in axes:
        _line(axes["loss"], train_loss, BLUE, "train", marker="")
        _line(axes["loss"], validation_loss, ORANGE, "validation")
        axes["loss"].set_ylabel("loss")
        axes["loss"].set_ylim(bottom=0)
        axes["loss"].legend(loc="upper right")
    if "accuracy" in axes:
        for (label, points), color in zip(lines.items(), (ORANGE, BLUE), strict=False):
            _line(axes["accuracy"], points, color, label)
        if len(lines) > 1:
            axes["accuracy"].legend(loc="upper left")
        axes["accuracy"].set_ylabel("validation accuracy")
        axes["accuracy"].yaxis.set_major_formatter(PercentFormatter(1))
    if "learning_rate" in axes:
        _line(axes["learning_rate"], learning_rate, GREY, "", marker="")
        axes["learning_rate"].set_ylabel("learning rate")
        axes["learning_rate"].set_ylim(bottom=0)
        axes["learning_rate"].ticklabel_format(axis="y", scilimits=(-2, 2))
    all_points = [*train_loss, *validation_loss, *accuracy, *learning_rate]
    last_step = max(step for step, _ in all_points)
    for panel in grid:
        panel.set_xlim(0, last_step * 1.02)
        if best_step is not None:
            panel.axvline(best_step, color=GREEN, linestyle="--", linewidth=1.2)
    if best_step is not None and "accuracy" in axes:
        axes["accuracy"].annotate(
            f"saved: step {best_step:,} ",
            (best_step, 0.04),
            xycoords=("data", "axes fraction"),
            ha="right" if best_step > last_step / 2 else "left",
            color=GREEN,
        )
    figure.align_ylabels()
    grid[-1].set_xlabel("step")
    grid[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _points(history: list[dict[str, Any]], name: str) -> Points:
    """Return the finite values of a metric in the Trainer's `log_history`, with their steps."""
    return [
        (entry["step"], entry[name])
        for entry in history
        if entry.get(name) is not None and "step" in entry and math.isfinite(entry[name])
    ]


def _line(axes: Axes, points: Points, color: str, label: str, marker: str = "o") -> None:
    if points:
        marker = "o" if len(points) == 1 else marker  # a single point has no line to be seen
        steps, values = zip(*points, strict=True)
        axes.plot(
            steps, values, color=color, label=label, marker=marker, markersize=4, linewidth=1.5
        )


def range_test_plot(
    rates: list[float], losses: list[float], smoothed: list[float], steepest: float
) -> Figure:
    """Draw the loss at rising learning rates, with the rate `steepest`, where it falls fastest."""
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color=GREY, linewidth=0.8, label="loss of a step")
    axes.plot(rates, smoothed, color=BLUE, linewidth=1.8, label="smoothed")
    axes.axvline(steepest, color=ORANGE, linestyle="--", label=f"falls fastest: {steepest:.2g}")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.3 * max(smoothed[0], min(smoothed)))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.legend(loc="lower left")
    return figure
