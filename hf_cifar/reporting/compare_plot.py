"""compare.json, and the accuracy of candidates over what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from hf_cifar.files import write_json
from hf_cifar.recipe.recipe import public_name
from hf_cifar.reporting.plot_style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PLAIN,
    drawing,
    plot_labels,
    save_figure,
)

COLOURS = {"linear": BLUE, "lora": ORANGE, "full": GREEN, "partial": "#CC79A7"}


def write_comparison(result: dict[str, Any], folder: Path) -> None:
    """Write compare.json and compare.png of what `planning.compare` returned."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "compare.json", result)
    names = [public_name(row["model"]).removeprefix("pypi:") for row in result["candidates"]]
    with drawing(names):
        save_figure(pareto_plot(result["candidates"], names), folder / "compare.png")


def pareto_plot(rows: list[dict[str, Any]], names: list[str]) -> Figure:
    """Draw accuracy over latency and over parameters, with the front of candidates that no other
    one beats in both.
    """
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels: Any = figure.subplots(1, 2, sharey=True)
    labels = dict(zip((row["model"] for row in rows), plot_labels(names, most=26), strict=True))
    rows = [row for row in rows if row["accuracy"] is not None]
    best = {row["model"]: row for row in sorted(rows, key=lambda row: row["accuracy"])}
    for axes, (cost, title, unit) in zip(
        panels,
        (("milliseconds", "latency of one image, ms", 1), ("parameters", "parameters, M", 1e6)),
        strict=True,
    ):
        front = pareto_front(rows, cost)
        axes.plot(
            [row[cost] / unit for row in front],
            [row["accuracy"] for row in front],
            color=GREY,
            drawstyle="steps-post",
            zorder=1,
        )
        for method, colour in COLOURS.items():
            points = [row for row in rows if row["method"] == method]
            if not points:
                continue
            accuracies = np.array([row["accuracy"] for row in points])
            low, high = np.array([row["accuracy_ci95"] for row in points]).T
            axes.errorbar(
                [row[cost] / unit for row in points],
                accuracies,
                (accuracies - low, high - accuracies),
                fmt="o",
                color=colour,
                label=method,
                elinewidth=0.8,
            )
        for model, row in best.items():
            axes.annotate(
                labels[model],
                (row[cost] / unit, row["accuracy"]),
                xytext=(6, 5),
                textcoords="offset points",
                fontsize=8,
                **PLAIN,
            )
        costs = sorted({row[cost] / unit for row in rows})
        axes.set_xscale("log")
        axes.set_xlim(costs[0] / 1.3, costs[-1] * (costs[-1] / costs[0]) ** 0.6 * 1.6)
        axes.set_xticks(costs, [f"{value:.3g}" for value in costs])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(title)
    panels[0].set_ylabel("accuracy on validation after the last run")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panels[1].legend(loc="lower right")
    return figure


def pareto_front(rows: list[dict[str, Any]], cost: str) -> list[dict[str, Any]]:
    """Return the rows that are more accurate than all that cost no more, from cheap to dear."""
    front: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row[cost], -row["accuracy"])):
        if not front or row["accuracy"] > front[-1]["accuracy"]:
            front.append(row)
    return front
