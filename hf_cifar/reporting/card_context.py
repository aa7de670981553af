"""What the template of the model card is given: metrics.json, and what follows from it.

Nothing here measures or invents. What metrics.json does not hold is undefined in the template,
which leaves out its row or section.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection
from typing import Any

from hf_cifar.data.deep_pixels import PixelRange
from hf_cifar.evaluation.metrics import wilson
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.recipe.yaml_text import write_yaml
from hf_cifar.reporting.card_format import count, markdown, percent
from hf_cifar.reporting.hub_metadata import dataset_facts, hub_metadata, is_hub_id
from hf_cifar.reporting.plot_style import needs_more_than_base_font
from hf_cifar.reporting.plots import ADDED_PLOTS, ENCODER_PLOTS, PLOTS

CONFUSED_PAIRS = 3  # shown
PEAKS = ("peak_host_memory_bytes", "peak_host_memory_bytes_of_features")
WITHOUT_EFFECT = (
    "output_dir",
    "disable_tqdm",
)  # keys of a recipe that its result doesn't depend on


def card_context(
    metrics: dict[str, Any], folder_name: str, plots: Collection[str]
) -> dict[str, Any]:
    """Return the variables of the template.

    folder_name: of the run. plots: names of the files in plots/, without their suffix.
    """
    present = _without_absent(metrics)
    name = present.get("run_name", folder_name)
    base = present.get("base_model")
    data = dataset_facts(present["dataset"]) if "dataset" in present else None
    labels, matrix = present.get("labels", []), present.get("test_confusion_matrix")
    classes = _classes(present)
    have_numbers = all("number" in row for row in classes)
    context = present | {
        "name": name,
        "location": present.get("hub_model_id", f"./{name}"),
        "hub_base": base if base and is_hub_id(base) else None,
        "pypi_base": base.removeprefix("pypi:") if base and base.startswith("pypi:") else None,
        "from_scratch": "base_model" in metrics and base is None,
        "data": data,
        "results": _results_table(present),
        "classes": classes,
        "numbered": have_numbers and needs_more_than_base_font(labels),
        "confused": _confused_pairs(matrix, labels) if matrix and labels else [],
        "plots": {
            stem: caption
            for stem, caption in (PLOTS | ADDED_PLOTS | ENCODER_PLOTS).items()
            if stem in plots
        },
        "front_matter": hub_metadata(present, name, data),
    }
    bins = [b for b in present.get("test_calibration", []) if b.get("count")]
    if bins:
        total = sum(b["count"] for b in bins)
        gaps = [b["count"] * (b["confidence"] - b["accuracy"]) for b in bins]
        context["overconfidence"] = sum(gaps) / total
    if len(seeds := present.get("test_accuracy_seeds", [])) > 1:
        context["seeds_mean"], context["seeds_sd"] = statistics.mean(seeds), statistics.stdev(seeds)
    if peaks := [present[name] for name in PEAKS if name in present]:
        context["peak_host_memory_bytes_from_nothing"] = max(peaks)
    if pixel_range := PixelRange.from_config(present.get("deep_pixels")):
        context["conversion"] = pixel_range.instructions()
    if metrics.get("recipe"):
        context["recipe_changes"] = _recipe_changes(metrics["recipe"])
    return context


def _recipe_changes(recipe: dict[str, Any]) -> str:
    """Return the YAML of the keys that differ from their defaults."""
    defaults = Recipe().to_dict()
    changes = {
        name: value
        for name, value in recipe.items()
        if name not in WITHOUT_EFFECT and (name not in defaults or defaults[name] != value)
    }
    return write_yaml(changes) if changes else ""


def _without_absent(value: Any) -> Any:
    """Return `value` without None, NaN, infinities and what is empty, at any depth of mappings."""
    if isinstance(value, dict):
        pruned = {key: _without_absent(item) for key, item in value.items()}
        return {key: item for key, item in pruned.items() if not _is_absent(item)}
    if isinstance(value, list):
        return [_without_absent(item) for item in value]
    return value


def _is_absent(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    return value is None or value in ({}, [], "")


def _results_table(metrics: dict[str, Any]) -> dict[str, Any] | None:
    """Return `splits`, those that were scored, and `rows` of text, with a cell for each of them."""
    splits = [split for split in ("test", "validation") if f"{split}_accuracy" in metrics]
    rows: list[list[str]] = []

    def add(title: str, metric: str, form: Callable[[Any], str]) -> None:
        names = [f"{split}_{metric}" for split in splits]
        if any(name in metrics for name in names):
            rows.append([title, *(form(metrics[n]) if n in metrics else "–" for n in names)])

    add("Accuracy", "accuracy", percent)
    add("95 % interval (Wilson)", "accuracy_ci95", _interval)
    add("Top-5 accuracy", "top5_accuracy", percent)
    if any(_is_unbalanced(metrics, split) for split in splits):
        add("Balanced accuracy", "balanced_accuracy", percent)
    add("AUROC", "auroc", lambda value: f"{value:.4f}")
    of_class = f" of {markdown(metrics['positive_class'])}" if "positive_class" in metrics else ""
    add(f"Average precision{of_class}", "average_precision", lambda value: f"{value:.4f}")
    for name in ("sensitivity", "specificity"):
        add(name.capitalize(), name, percent)
        add(f"95 % interval of the {name}", f"{name}_ci95", _interval)
    add("Mean average precision", "map", lambda value: f"{value:.4f}")
    add("AUROC (macro)", "auroc_macro", lambda value: f"{value:.4f}")
    add("Micro F1", "f1_micro", lambda value: f"{value:.4f}")
    add("Macro F1", "f1_macro", lambda value: f"{value:.4f}")
    add("Negative log-likelihood (nats)", "nll", lambda value: f"{value:.4f}")
    add("Expected calibration error (15 bins)", "ece", percent)
    add("Images", "samples", count)
    return {"splits": splits, "rows": rows} if splits else None


def _interval(ends: list[float]) -> str:
    return f"{percent(ends[0])} to {percent(ends[1])}"


def _is_unbalanced(metrics: dict[str, Any], split: str) -> bool:
    """Return whether the balanced accuracy on a split says something that the accuracy doesn't."""
    names = f"{split}_balanced_accuracy", f"{split}_accuracy"
    return names[0] in metrics and percent(metrics[names[0]]) != percent(metrics[names[1]])


def _classes(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Return name, number and accuracy of each class of the test split, with its images and its
    interval where the confusion matrix has them.
    """
    labels, matrix = metrics.get("labels", []), metrics.get("test_confusion_matrix")
    numbers = {name: number for number, name in enumerate(labels)}
    rows = []
    for name, accuracy in metrics.get("test_per_class_accuracy", {}).items():
        row: dict[str, Any] = {"name": name, "accuracy": accuracy}
        if name in numbers:
            row["number"] = number = numbers[name]
            if matrix:
                row["count"] = sum(matrix[number])
                row["low"], row["high"] = wilson(matrix[number][number], row["count"])
        rows.append(row)
    return rows


def _confused_pairs(matrix: list[list[int]], names: list[str]) -> list[dict[str, Any]]:
    """Return the pairs of classes most often taken for each other, in both directions together."""
    pairs: list[dict[str, Any]] = [
        {"first": names[a], "second": names[b], "forth": matrix[a][b], "back": matrix[b][a]}
        for a in range(len(names))
        for b in range(a + 1, len(names))
        if matrix[a][b] + matrix[b][a]
    ]
    return sorted(pairs, key=lambda pair: -(pair["forth"] + pair["back"]))[:CONFUSED_PAIRS]
