"""Table and plot of a few-shot study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from hf_cifar.files import write_json
from hf_cifar.reporting.plot_style import BLUE, GREEN, GREY, ORANGE, drawing, save_figure

COLOURS = {
    "means": BLUE,
    "logistic": ORANGE,
    "knn": GREY,
    "guarded": GREEN,
    "refined": "#CC79A7",
    "lora": "#D55E00",
}


def write_few_shot(result: dict[str, Any], folder: Path) -> None:
    """Write few_shot.json and few_shot.png of what `evaluation.few_shot` returned."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "few_shot.json", result)
    with drawing():
        save_figure(few_shot_curves(result), folder / "few_shot.png")


def few_shot_curves(result: dict[str, Any]) -> Figure:
    """Draw the accuracy of each method over the number of labels, with its interval."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    rows = result["results"]
    for method, colour in COLOURS.items():
        points = [row for row in rows if row["method"] == method]
        if not points:
            continue
        shots = [row["shots"] for row in points]
        axes.plot(shots, [row["mean"] for row in points], "o-", color=colour, label=method, ms=4)
        if points[0]["low"] is not None:
            low, high = [row["low"] for row in points], [row["high"] for row in points]
            axes.fill_between(shots, low, high, color=colour, alpha=0.15, linewidth=0)
    ticks = sorted({row["shots"] for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(count) for count in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("labelled images of each class")
    axes.set_ylabel(f"accuracy on {result['test_images']:,} test images")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_title(f"Mean of {result['draws']} draws, with its 95 % interval")
    axes.legend(loc="lower right")
    return figure
