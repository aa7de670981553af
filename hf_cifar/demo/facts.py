"""Facts of a run for its page: title, figures, classifier and layer of the heat maps."""

from __future__ import annotations

from typing import Any

from hf_cifar.errors import UserError
from hf_cifar.evaluation.classifier import Classifier
from hf_cifar.evaluation.heat_map_layer import choose_layer
from hf_cifar.models.config import MULTI_LABEL
from hf_cifar.models.structure import head
from hf_cifar.reporting.card_format import count, percent
from hf_cifar.reporting.hub_metadata import dataset_facts
from hf_cifar.text import visible


def page_facts(classifier: Classifier, metrics: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the content of page.json: `title`, `about`, `figures` ([[name, value], ...]), and of
    the model `head`, the name of its classifier, and `heat_map`, the layer of its heat maps or None
    where it has none.

    metrics: metrics.json. name: of the run.
    """
    try:
        layer = choose_layer(classifier.model, classifier.transforms.image_size)
        heat_map = {"name": layer.name, "grid": list(layer.grid), "form": layer.form}
    except UserError:
        heat_map = None
    dataset = dataset_facts(metrics["dataset"])["title"] if metrics.get("dataset") else None
    kind = "labels, of which a picture has any number" if classifier.several_labels else "classes"
    about = f"An image classifier for {len(classifier.labels)} {kind}"
    about += f", trained on {visible(dataset)}." if dataset else "."
    return {
        "title": visible(metrics.get("run_name") or name),
        "about": about,
        "figures": _figures(metrics),
        "head": head(classifier.model)[0],
        "heat_map": heat_map,
    }


def _figures(metrics: dict[str, Any]) -> list[list[str]]:
    """Return the card's main figures, those that the metrics hold."""
    figures: list[list[str]] = []

    def add(name: str, key: str, form: Any) -> None:
        if metrics.get(key) is not None:
            figures.append([name, form(metrics[key])])

    several_labels = metrics.get("problem_type") == MULTI_LABEL
    name = "Test images with all labels right" if several_labels else "Test accuracy"
    add(name, "test_accuracy", percent)
    if figures and (ends := metrics.get("test_accuracy_ci95")):
        low, high = (f"{100 * end:.2f}" for end in ends)
        figures[0][1] += f" (95 % interval {low} to {high})"
    add("Mean average precision", "test_map", lambda value: f"{value:.4f}")
    add("Test images", "test_samples", count)
    add("Mean F1 score of the classes", "test_f1_macro", percent)
    add("Calibration error (ECE)", "test_ece", percent)
    add("Training images", "train_samples", count)
    add("Backbone", "base_model", visible)
    add("Parameters", "total_parameters", count)
    add("Image size", "image_size", lambda side: f"{side} px")
    add("Licence", "license", visible)
    return figures
