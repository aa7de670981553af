"""Plot the reconstructions of a masked autoencoder over the steps of its training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

STEPS_SHOWN = 6


def reconstructions(
    pictures: np.ndarray, masked: np.ndarray, drawn: Mapping[int, np.ndarray]
) -> Figure:
    """Draw a row of pictures, one with their hidden patches grey, and one for each of some steps.

    pictures, masked: uint8 [n, H, W, 3]. drawn: optimizer step -> uint8 [n, H, W, 3]; of many steps
    some are shown, the first and the last among them.
    """
    steps = sorted(drawn)
    places = np.unique(np.linspace(0, len(steps) - 1, min(STEPS_SHOWN, len(steps))).round())
    rows = {"picture": pictures, "seen": masked}
    rows |= {f"step {steps[int(place)]:,}": drawn[steps[int(place)]] for place in places}
    figure = Figure(figsize=(1.1 * len(pictures) + 0.9, 1.1 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(pictures), squeeze=False)
    for axes_of_row, (title, images) in zip(grid, rows.items(), strict=True):
        axes_of_row[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
        for axes, image in zip(axes_of_row, images, strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.imshow(image, interpolation="nearest" if len(image) < 200 else "antialiased")
    return figure
