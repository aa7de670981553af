"""Two places side by side: typical pictures, and how far their looks are apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hf_cifar.reporting.plot_style import BLUE, PLAIN, drawing, save_figure
from hf_cifar.text import visible


def write_comparison_plot(
    file: Path,
    result: dict[str, Any],
    names: Sequence[str],
    pictures: Sequence[Sequence[np.ndarray]],
) -> None:
    """Draw a PNG.

    result, pictures: of `adaptation.compare`. names: of the two places.
    """
    with drawing(names):
        columns = max(map(len, pictures))
        figure = Figure(figsize=(1.2 * columns + 1, 6.2), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=(1, 1.1))
        upper, lower = parts
        grid = upper.subplots(2, columns, squeeze=False)
        for row, name in enumerate(names):
            for axes in grid[row]:
                axes.axis("off")
            for axes, picture in zip(grid[row], pictures[row], strict=False):
                smoothing = "nearest" if max(picture.shape) < 200 else "antialiased"
                axes.imshow(picture, interpolation=smoothing)
            grid[row][0].set_title(visible(name, 40), loc="left", fontsize=9, **PLAIN)
        axes = lower.subplots()
        looks = list(result["looks"])
        values = [result["looks"][name]["difference"] for name in looks]
        axes.barh(range(len(looks)), values, color=BLUE)
        axes.set_yticks(range(len(looks)), looks)
        axes.invert_yaxis()
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel("difference of the means, in deviations of the first")
        save_figure(figure, file)
