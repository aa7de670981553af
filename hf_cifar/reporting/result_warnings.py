"""What a person should know before they trust a result."""

from __future__ import annotations

from typing import Any


def result_warnings(metrics: dict[str, Any]) -> list[str]:
    """Return a sentence for each sign in metrics.json that a run did not learn what it could."""
    warnings = [
        f"{task}: {warning}"
        for task, scores in metrics.get("tasks", {}).items()
        for warning in result_warnings(scores)
    ]
    split = next((s for s in ("test", "validation") if f"{s}_accuracy_ci95" in metrics), None)
    if split is None:
        return warnings
    accuracy, (low, high) = metrics[f"{split}_accuracy"], metrics[f"{split}_accuracy_ci95"]
    chance, images = _commonest_share(metrics, split), metrics[f"{split}_samples"]
    if chance is not None and low <= chance:
        warnings.append(
            f"The {split} accuracy of {accuracy:.1%} on {images:,} images is not clearly better"
            f" than always answering with the commonest class ({chance:.1%}), so the model may have"
            " learned nothing: check the labels and the pictures, or try another method."
        )
    neighbours = metrics.get("knn_accuracy")
    if neighbours is not None and split == "test" and high < neighbours:
        warnings.append(
            f"The test accuracy of {accuracy:.1%} is clearly below the {neighbours:.1%} of a"
            " nearest-neighbour classifier on the same features, so the training has lost what the"
            " backbone knew: try another learning rate or method."
        )
    unlabelled = metrics.get("unlabelled", {})
    if unlabelled.get("images_in_test"):
        warnings.append(
            f"{unlabelled['images_in_test']:,} of the {unlabelled['images']:,} images without"
            " labels that it learned from are test images too, so the test accuracy may be higher"
            " than on new images."
        )
    return warnings


def _commonest_share(metrics: dict[str, Any], split: str) -> float | None:
    """Return the share of the commonest true class among the images of a split."""
    matrix = metrics.get(f"{split}_confusion_matrix")
    if not matrix:
        return None
    images_per_class = [sum(row) for row in matrix]
    return max(images_per_class) / sum(images_per_class)
