"""The plot of `monitor_features`: how good the features are while a model trains."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hf_cifar.reporting.plot_style import BLUE, GREEN, GREY, ORANGE

SHARES = {
    "knn_accuracy": ("nearest neighbours right", BLUE),
    "class_separation": ("class separation", GREEN),
    "cka": ("likeness to pretrained (CKA)", GREY),
}


def representation(history: list[dict[str, Any]]) -> Figure | None:
    """Draw the measures of the features over optimizer steps.

    history: the Trainer's `log_history`. Returns None if it has none of these measures.
    """
    entries = [
        entry
        for entry in history
        if "step" in entry and math.isfinite(entry.get("eval_effective_rank") or math.nan)
    ]
    if not entries:
        return None
    figure = Figure(figsize=(7.5, 5.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    steps = [entry["step"] for entry in entries]
    for name, (title, colour) in SHARES.items():
        values = [entry[f"eval_{name}"] for entry in entries]
        upper.plot(steps, values, "o-", ms=4, color=colour, label=title)
    upper.set_ylabel("share")
    upper.legend(loc="lower left", fontsize=8)
    ranks = [entry["eval_effective_rank"] for entry in entries]
    lower.plot(steps, ranks, "o-", ms=4, color=ORANGE)
    lower.set_ylim(bottom=0)
    lower.set_ylabel("effective rank")
    lower.set_xlabel("step")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
