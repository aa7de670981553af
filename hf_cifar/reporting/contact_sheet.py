"""Contact sheets: many small pictures on one page, each with a few words."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from hf_cifar.reporting.plot_style import PLAIN

ON_A_SHEET = 60  # pictures
COLUMNS = 10


def draw_contact_sheet(cells: Sequence[tuple[np.ndarray, str]]) -> Figure:
    """Draw pictures, each uint8 [H, W, 3] with its title, from left to right and downward."""
    lines = math.ceil(len(cells) / COLUMNS)
    figure = Figure(figsize=(1.25 * COLUMNS, 1.75 * lines), layout="constrained")
    grid = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, (picture, title) in zip(grid, cells, strict=False):
        smoothing = "nearest" if max(picture.shape) < 200 else "antialiased"
        axes.imshow(picture, interpolation=smoothing)
        axes.set_title(title, fontsize=7, **PLAIN)
    return figure
