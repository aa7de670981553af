"""The YAML at the top of a model card, which the Hub reads."""

from __future__ import annotations

import re
from typing import Any

from hf_cifar.recipe.yaml_text import write_yaml
from hf_cifar.text import visible

# Identifiers on the Hub's page "Licenses" that weights are published under. The Hub refuses a card
# with any other; such a licence becomes `other` with a name.
HUB_LICENSES = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 bsd bsd-2-clause bsd-3-clause cc cc-by-2.0 cc-by-3.0 cc-by-4.0
    cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 gpl gpl-2.0
    gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 mit mpl-2.0 openrail other unknown unlicense wtfpl zlib
    """.split()  # noqa: SIM905 (35 lines of list)
)


def hub_metadata(metrics: dict[str, Any], name: str, data: dict[str, Any] | None) -> str:
    """Return the YAML for the metrics of a run.

    metrics: metrics.json without what is absent. name: of the run. data: what `dataset_facts`
    returned.
    """
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    if "test_accuracy" in metrics and data:
        samples = {"samples": metrics["test_samples"]} if "test_samples" in metrics else None
        results.append(
            EvalResult(
                task_type="image-classification",
                task_name="Image Classification",
                dataset_type=data["hub"] or "imagefolder",
                dataset_name=visible(data["title"]),
                dataset_split="test",
                dataset_args=samples,
                metric_type="accuracy",
                metric_name="Test accuracy",
                metric_value=metrics["test_accuracy"],
            )
        )
    task = metrics.get("task", "image-classification")
    tags = [task, "vision", metrics.get("model_type"), "hf-cifar"]
    tags += ["cifar10"] if data and data["cifar10"] else []
    tags += metrics.get("tags", [])
    base = metrics.get("base_model", "")
    base = base if is_hub_id(base) else None
    relation = "adapter" if metrics.get("adapter") else "finetune"
    card = ModelCardData(
        **license_keys(metrics.get("license")),
        library_name="transformers",
        pipeline_tag=task,
        tags=[tag for tag in tags if tag],
        base_model=base,
        base_model_relation=relation if base else None,
        datasets=[data["hub"]] if data and data["hub"] else None,
        metrics=["accuracy"] if "test_accuracy" in metrics else None,
        model_name=visible(name),
        eval_results=results or None,
    )
    if not results:
        card.pop("model_name")  # part of the model-index; the Hub knows no such key by itself
    return card.to_yaml()


def eval_results(metrics: dict[str, Any]) -> str | None:
    """Return the YAML of `.eval_results/*.yaml`, which the Hub shows with the data set's results;
    `model-index` is its older form. None for data without an id on the Hub.

    metrics: metrics.json.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    data = dataset_facts(metrics["dataset"]) if metrics.get("dataset") else None
    if data is None or data["hub"] is None or metrics.get("test_accuracy") is None:
        return None
    notes = "accuracy on the test split"
    if samples := metrics.get("test_samples"):
        recipe = metrics.get("recipe") or {}
        in_part = metrics["dataset"] == "sample" or recipe.get("max_eval_samples")
        part = "a part of the test split" if in_part else "the test split"
        notes = f"accuracy on {part}: {samples:,} images"
    entry = EvalResultEntry(
        dataset_id=data["hub"],
        task_id="default",
        value=metrics["test_accuracy"],
        notes=notes,
    )
    return write_yaml(eval_result_entries_to_yaml([entry]))


def is_hub_id(name: str) -> bool:
    """Return whether a name is namespace/name. In metrics.json a folder has no slash, because it
    stands there by its last part.
    """
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def dataset_facts(name: str) -> dict[str, Any]:
    """Return `title`, `hub` (its id there, or None) and `cifar10` of the data set that metrics.json
    names.

    It is CIFAR-10 by its name: other sets (CINIC-10) have the same ten labels.
    """
    hub = name if is_hub_id(name) else None
    stem = name.rstrip("/").rsplit("/", 1)[-1]
    if name == "sample":
        title = "CIFAR-10 (the sample that hf-cifar carries)"
    elif re.fullmatch(r"cifar[-_]?10([-_](batches|python|binary).*)?", stem.lower()):
        title = "CIFAR-10"
    else:
        return {"title": hub or stem, "hub": hub, "cifar10": False}
    return {"title": title, "hub": "uoft-cs/cifar10", "cifar10": True}


def license_keys(name: str | None) -> dict[str, Any]:
    """Return the keys of a card's metadata that name a licence; none without one."""
    if not name:
        return {}
    identifier = re.sub(r"[^a-z0-9.+-]+", "-", name.lower()).strip("-")
    if identifier in HUB_LICENSES:
        return {"license": identifier}
    return {"license": "other", "license_name": identifier}
