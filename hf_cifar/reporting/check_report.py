"""A report of placeholders, made before training, so that no class name can stop the real one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from hf_cifar.errors import UserError
from hf_cifar.evaluation.metrics import classification_metrics
from hf_cifar.files import write_text
from hf_cifar.reporting import class_plots
from hf_cifar.reporting.model_card import render_card
from hf_cifar.reporting.plot_style import drawing, save_figure
from hf_cifar.reporting.predictions import write_predictions
from hf_cifar.reporting.ranking_plots import ranking_curves_of_run
from hf_cifar.text import visible

LONGEST_NAME = 255  # characters; no file system takes a longer name either
SHOWN = 80  # characters of a name in a message


def check_report(class_names: Sequence[str]) -> None:
    """Make predictions, plots and card of a run with these classes once, with placeholders.

    Raises UserError for names that they can't take.
    """
    _check_names(class_names)
    try:
        with TemporaryDirectory() as folder:
            _write_placeholders(Path(folder), list(class_names))
    except Exception as error:  # whatever the libraries make of a name
        reason = visible(f"{type(error).__name__}: {error}", most=200)
        raise UserError(
            f"the report of the run can't be made with these class names ({reason}); rename the"
            " classes"
        ) from error


def _check_names(class_names: Sequence[str]) -> None:
    """Raise UserError for the first class whose name no file or card can hold."""
    for number, name in enumerate(class_names):
        where = f"class {number} ({visible(name, most=SHOWN)})"
        if not name.strip():
            raise UserError(f"class {number} has an empty name; give it one")
        if len(name) > LONGEST_NAME:
            raise UserError(
                f"{where}: its name has {len(name)} characters; shorten it to {LONGEST_NAME}"
            )
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise UserError(f"{where}: its name is no UTF-8 text; rename it")
    name, count = Counter(class_names).most_common(1)[0]
    if count > 1:
        raise UserError(
            f"{count} classes have the same name, {visible(name, most=SHOWN)}; give each its own"
        )


def _write_placeholders(folder: Path, class_names: list[str]) -> None:
    every_class, probabilities = np.arange(len(class_names)), np.eye(len(class_names))
    write_predictions(folder, every_class, every_class, probabilities, class_names)
    metrics = classification_metrics(probabilities, every_class, class_names)
    matrix, picture = metrics["test_confusion_matrix"], np.zeros((8, 8, 3), np.uint8)
    with drawing(class_names):
        figures = [
            class_plots.confusion_matrix(matrix, class_names),
            class_plots.per_class_accuracy(matrix, class_names),
            class_plots.mistakes([picture], [(0, 0, len(class_names) - 1, 1.0)], class_names),
        ]
        curves = ranking_curves_of_run(every_class, probabilities, class_names, threshold=0.5)
        figures += [curves] if curves is not None else []
        for number, figure in enumerate(figures):
            # Small, and without the layout that makes room for long labels, this takes a tenth of
            # the time of the real plots.
            figure.set_layout_engine("none")
            figure.set_dpi(30)
            save_figure(figure, folder / f"{number}.png")
    write_text(folder / "README.md", render_card(metrics | {"labels": class_names}, "run", []))
