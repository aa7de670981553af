"""PNGs of pictures beside their heat maps."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from matplotlib.figure import Figure

from hf_cifar.errors import UserError
from hf_cifar.evaluation.heat_maps import overlay
from hf_cifar.evaluation.named_picture import WEB
from hf_cifar.evaluation.predict import Explanation
from hf_cifar.reporting.plot_style import PLAIN, drawing, save_figure
from hf_cifar.text import visible

MOST_NAME = 100  # characters of a file's name


class HeatMapSheets:
    """Writes a PNG for each picture into a folder, which is made where it is missing."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError where the folder can't be made."""
        self._folder = folder.expanduser()
        self._names: set[str] = set()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--explain {folder}: {error.strerror}; name another folder") from None

    def write(self, picture: str, explanation: Explanation) -> Path:
        """Write what the model saw of a picture beside its heat map, and return the file.

        picture: its path or URL, after which the file is called. A second picture of the same name
        gets a number. Raises UserError where the folder takes no file.
        """
        seen, heat, label, score = explanation
        path = self._folder / f"{self._file_name(picture)}.png"
        figure = Figure(figsize=(6, 3.3), layout="constrained")
        try:
            with drawing([label]):
                figure.suptitle(f"{visible(label, most=60)} {score:.3f}", **PLAIN)
                left, right = figure.subplots(1, 2)
                smoothing = "nearest" if len(seen) < 200 else "antialiased"
                left.imshow(seen, interpolation=smoothing)
                right.imshow(overlay(seen, heat))
                for axes in (left, right):
                    axes.axis("off")
                save_figure(figure, path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; name another folder") from None
        return path

    def _file_name(self, picture: str) -> str:
        """Return a name without suffix that no earlier picture has."""
        last = Path(urlsplit(picture).path if picture.startswith(WEB) else picture).stem
        stem = re.sub(r"[^\w.-]", "_", visible(last))[:MOST_NAME].strip(".") or "picture"
        name, number = stem, 1
        while name.lower() in self._names:
            number += 1
            name = f"{stem}-{number}"
        self._names.add(name.lower())
        return name
