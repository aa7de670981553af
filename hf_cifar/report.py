"""What a run leaves for people: predictions.parquet, the plots and the card, all made from figures measured before."""

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_cifar.card import FORMATS, PLOTS, card_context, keeps_absent
from hf_cifar.errors import UserError

MISTAKES_SHOWN = 25


def write_predictions(
    folder: Path, index: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, label_names: Sequence[str]
) -> None:
    """Writes `predictions.parquet`: index, label, prediction (class labels with names) and probabilities.

    Args:
        folder: the run folder, which exists.
        index: [N] int, row of the sample in the test split.
        labels: [N] int.
        probabilities: [N, C] float, kept as float32; the prediction is their argmax.
        label_names: C names, stored as features that `datasets.load_dataset` reads.
    """
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = datasets.ClassLabel(names=list(label_names))
    features = datasets.Features(
        {
            "index": datasets.Value("int64"),
            "label": names,
            "prediction": names,
            "probabilities": datasets.Sequence(datasets.Value("float32")),
        }
    )
    columns = [
        np.asarray(index, np.int64),
        np.asarray(labels, np.int64),
        np.asarray(probabilities).argmax(axis=1).astype(np.int64),
        list(np.asarray(probabilities, np.float32)),
    ]
    schema = features.arrow_schema
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    partial = folder / "predictions.parquet.partial"
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), partial)
    os.replace(partial, folder / "predictions.parquet")


def confident_mistakes(folder: Path, limit: int = MISTAKES_SHOWN) -> list[tuple[int, int, int, float]]:
    """(index, label, prediction, confidence) of the wrong predictions, most confident first, ties by index."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "predictions.parquet")
    wrong = [
        (row["index"], row["label"], row["prediction"], max(row["probabilities"]))
        for row in table.to_pylist()
        if row["label"] != row["prediction"]
    ]
    return sorted(wrong, key=lambda row: (-row[3], row[0]))[:limit]


def write_plots(folder: Path, metrics: dict[str, Any], pictures: Callable[[Sequence[int]], list[np.ndarray]]) -> list[str]:
    """Draws `plots/*.png` of a run from its metrics and its predictions.parquet.

    Args:
        folder: the run folder; plots of an earlier evaluation in it are removed.
        metrics: the content of metrics.json; a plot whose figures are absent is left out.
        pictures: gives the test images of the named rows as uint8, H x W x 3.

    Returns:
        Paths of the files written, relative to `folder`.
    """
    from hf_cifar import plots

    names = metrics.get("labels", [])
    matrix = metrics.get("test_confusion_matrix")
    figures = {"learning_curves": plots.learning_curves(metrics.get("history") or [], metrics.get("best_step"))}
    if matrix and names:
        figures["confusion_matrix"] = plots.confusion_matrix(matrix, names)
        figures["per_class_accuracy"] = plots.per_class_accuracy(matrix, names)
    if names and (folder / "predictions.parquet").is_file():
        wrong = confident_mistakes(folder)
        if wrong:
            figures["mistakes"] = plots.mistakes(
                pictures([index for index, *_ in wrong]),
                [(names[label], names[guess], confidence) for _, label, guess, confidence in wrong],
            )
    if metrics.get("test_calibration") and metrics.get("test_ece") is not None:
        figures["reliability"] = plots.reliability(metrics["test_calibration"], metrics["test_ece"])

    (folder / "plots").mkdir(exist_ok=True)
    written = []
    for stem in PLOTS:
        path = folder / "plots" / f"{stem}.png"
        path.unlink(missing_ok=True)
        figure = figures.get(stem)
        if figure is not None:
            plots.save(figure, path)
            written.append(f"plots/{stem}.png")
    return written


def card_template() -> Path:
    """The card's Jinja template: inside the package in a wheel, at the repository's top level in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package, package.parent):
        path = folder / "model_cards" / "card.md.j2"
        if path.is_file():
            return path
    raise FileNotFoundError(f"model_cards/card.md.j2 is neither in {package} nor beside it: the installation is broken")


def write_card(folder: Path) -> None:
    """Writes `README.md`, the model card, of a run from its metrics.json alone (and the plots that lie there).

    Figures that metrics.json does not hold are left out, with their row or section.

    Raises:
        UserError: metrics.json is missing or is no JSON object.
    """
    import jinja2

    folder = Path(folder).resolve()
    path = folder / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: a card needs a finished run, train or evaluate it first") from None
    except ValueError as error:
        raise UserError(f"{path} is no valid JSON ({error}): evaluate the run again to write it anew") from None
    if not isinstance(metrics, dict):
        raise UserError(f"{path} must hold one JSON object: evaluate the run again to write it anew")

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters.update({name: keeps_absent(form) for name, form in FORMATS.items()})
    template = environment.from_string(card_template().read_text(encoding="utf-8"))
    text = template.render(card_context(metrics, folder))
    partial = folder / "README.md.partial"
    partial.write_text(re.sub(r"\n{3,}", "\n\n", text), encoding="utf-8")
    os.replace(partial, folder / "README.md")
