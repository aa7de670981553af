"""What later commands add to a finished run: figures, plots, a part of its card."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_cifar.errors import UserError
from hf_cifar.files import write_json
from hf_cifar.reporting.model_card import write_card
from hf_cifar.runs.folder import MARKER, RunFolder


def is_run(model: str) -> bool:
    """Return whether `model` names the folder of a finished run."""
    folder = Path(model).expanduser()
    return all((folder / name).is_file() for name in (MARKER, "recipe.yaml", "metrics.json"))


def add_to_run(run: Path, name: str, value: dict[str, Any], draw: Callable[[Path], object]) -> None:
    """Put `value` under the key `name` of a finished run's metrics.json, draw plots into its
    folder, and write its card again.

    draw: writes `plots/*.png` into the folder that it is given. Raises UserError where the folder
    is in use or its disk refuses.
    """
    with RunFolder.reopen(run) as folder:
        metrics = folder.finished_metrics()
        if metrics is None:
            raise UserError(f"{run}: metrics.json is missing: the run is not finished; train it")
        with folder.writing() as aside:
            if (folder.path / "plots").is_dir():
                shutil.copytree(folder.path / "plots", aside / "plots")
            draw(aside)
            write_json(aside / "metrics.json", metrics | {name: value})
            write_card(aside)
