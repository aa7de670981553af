"""Plots of what corruptions cost a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import PercentFormatter

from hf_cifar.reporting.plot_style import BLUE, GREY, ORANGE, PLAIN, drawing, save_figure
from hf_cifar.text import visible


def write_stress_plots(
    folder: Path, result: dict[str, Any], pictures: Sequence[np.ndarray]
) -> list[str]:
    """Draw `plots/stress_*.png` into a folder and return their paths, relative to it.

    result, pictures: what `evaluation.stress.stress` returns.
    """
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    names = [fact[key] for fact in result["worst"] for key in ("label", "prediction")]
    written = []
    with drawing(names):
        figures = {
            "stress_accuracy": heat_map(result),
            "stress_severity": curves(result),
            "stress_mistakes": worst_pictures(result["worst"], pictures) if pictures else None,
        }
        for name, figure in figures.items():
            if figure is not None:
                save_figure(figure, folder / "plots" / f"{name}.png")
                written.append(f"plots/{name}.png")
    return written


def heat_map(result: dict[str, Any]) -> Figure:
    """Draw the accuracy under each corruption (rows) at each severity (columns)."""
    names = list(result["corruptions"])
    severities = list(next(iter(result["corruptions"].values())))
    values = np.array([[result["corruptions"][n][s] for s in severities] for n in names])
    figure = Figure(figsize=(2.6 + 0.9 * len(severities), 1.4 + 0.34 * len(names)))
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    axes.grid(visible=False)
    image = axes.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(severities)), severities)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_xlabel("severity")
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        colour = "black" if value > 0.6 else "white"
        axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=colour)
    figure.colorbar(image, ax=axes, label="accuracy", format=PercentFormatter(1))
    return figure


def curves(result: dict[str, Any]) -> Figure:
    """Draw the accuracy over the severity: each corruption thin, their mean thick, and the mean of
    the other model where two were compared.
    """
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for model, colour, label in (
        (result.get("against"), ORANGE, "the other model, mean"),
        (result, BLUE, "mean"),
    ):
        if model is None:
            continue
        severities = [int(s) for s in next(iter(model["corruptions"].values()))]
        start = [] if model["clean"] is None else [0]
        rows = [
            [model["clean"]] * len(start) + list(by_severity.values())
            for by_severity in model["corruptions"].values()
        ]
        for row in rows if model is result else ():
            axes.plot(start + severities, row, color=GREY, linewidth=0.7, alpha=0.6)
        mean = np.mean(rows, axis=0)
        axes.plot(start + severities, mean, "o-", color=colour, linewidth=2, label=label)
    axes.set_ylim(0, 1)
    axes.set_xticks(range(0 if result["clean"] is not None else 1, 6))
    axes.set_xlabel("severity (0: as it is)")
    axes.set_ylabel("accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(loc="lower left")
    return figure


def worst_pictures(worst: Sequence[dict[str, Any]], pictures: Sequence[np.ndarray]) -> Figure:
    """Draw for each corruption the picture that the model is most surely wrong about.

    pictures: uint8 [H, W, 3] each, corrupted. worst: what the result says of each.
    """
    columns = min(5, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.08)
    figure = Figure(figsize=(1.9 * columns, 2.3 * rows), layout=layout)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, fact, picture in zip(grid, worst, pictures, strict=False):
        smoothing = "nearest" if max(picture.shape) < 200 else "antialiased"
        axes.imshow(picture, interpolation=smoothing)
        label, prediction = (visible(fact[key], 12) for key in ("label", "prediction"))
        title = (
            f"{fact['corruption'].replace('_', ' ')} {fact['severity']}\n{label} → {prediction}"
            f"\n{fact['probability']:.1%}"
        )
        axes.set_title(title, fontsize=8, **PLAIN)
    return figure
