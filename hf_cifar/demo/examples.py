"""Pictures to try on the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image

from hf_cifar.data.load import load_split
from hf_cifar.errors import UserError
from hf_cifar.evaluation.classifier import Classifier
from hf_cifar.evaluation.target_data import target_recipe

MOST_EXAMPLES = 8


def write_examples(run: str, classifier: Classifier, folder: Path) -> list[str]:
    """Write the first test picture of each of the first classes as PNG into a new folder, and
    return the files: none where the run's data is not at hand.
    """
    try:
        split = load_split(target_recipe(run, None, {}), "test", classifier.pixel_range)
    except (UserError, OSError):
        return []
    _, first = np.unique(split.labels, return_index=True)
    folder.mkdir()
    files = []
    for number, row in enumerate(split.rows[np.sort(first)[:MOST_EXAMPLES]]):
        path = folder / f"{number + 1}.png"
        PIL.Image.fromarray(split.images.picture(int(row))).save(path)
        files.append(str(path))
    return files
