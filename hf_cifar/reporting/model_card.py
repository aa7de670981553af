"""What the model card says: the figures of metrics.json, as the words and tables that its template
sets.

Nothing here measures or invents: what metrics.json does not hold is absent, and the template leaves
it out.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_cifar.errors import UserError
from hf_cifar.evaluation.metrics import wilson
from hf_cifar.recipe.recipe import packaged
from hf_cifar.reporting.card_format import FORMATS, _count, _percent, keeps_absent
from hf_cifar.reporting.plots import PLOTS

log = logging.getLogger(__name__)
# Identifiers that the Hub knows (its "Licenses" page) and that weights are published under; the Hub
# refuses a card with an unknown one, so any other becomes `other` with its own name. fmt: off
HUB_LICENSES = frozenset(
    {
        "afl-3.0",
        "agpl-3.0",
        "apache-2.0",
        "bsd",
        "bsd-2-clause",
        "bsd-3-clause",
        "cc",
        "cc-by-2.0",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-nc-2.0",
        "cc-by-nc-3.0",
        "cc-by-nc-4.0",
        "cc-by-nc-nd-3.0",
        "cc-by-nc-nd-4.0",
        "cc-by-nc-sa-2.0",
        "cc-by-nc-sa-3.0",
        "cc-by-nc-sa-4.0",
        "cc-by-nd-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "cc0-1.0",
        "gpl",
        "gpl-2.0",
        "gpl-3.0",
        "isc",
        "lgpl",
        "lgpl-2.1",
        "lgpl-3.0",
        "mit",
        "mpl-2.0",
        "openrail",
        "other",
        "unknown",
        "unlicense",
        "wtfpl",
        "zlib",
    }
)
# fmt: on


def card_context(metrics: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the template sees: metrics.json without its empty values, and what follows from them."""
    present = _present(metrics)
    name = present.get("run_name", folder.name)
    base = present.get("base_model")
    hub_base = base if base and _is_hub_id(base) else None
    matrix, labels = present.get("test_confusion_matrix"), present.get("labels")
    context = present | {
        "name": name,
        "where": present.get("hub_model_id", f"./{name}"),
        "hub_base": hub_base,
        "pypi_base": base.removeprefix("pypi:") if base and base.startswith("pypi:") else None,
        "from_scratch": "base_model" in metrics and base is None,
        "data": _dataset(present),
        "results": _results(present),
        "classes": _classes(present),
        "confused": _confused_pairs(matrix, labels) if matrix and labels else [],
        "plots": {
            stem: text
            for stem, text in PLOTS.items()
            if (folder / "plots" / f"{stem}.png").is_file()
        },
    }
    bins = [b for b in present.get("test_calibration", []) if b.get("count")]
    if bins:
        total = sum(b["count"] for b in bins)
        context["overconfidence"] = (
            sum(b["count"] * (b["confidence"] - b["accuracy"]) for b in bins) / total
        )
    if len(seeds := present.get("test_accuracy_seeds", [])) > 1:
        context["seeds_mean"], context["seeds_sd"] = statistics.mean(seeds), statistics.stdev(seeds)
    if "recipe" in present:
        import yaml

        context["recipe"] = yaml.safe_dump(
            metrics["recipe"], sort_keys=False, allow_unicode=True, width=100
        )
    context["front_matter"] = _front_matter(present, context)
    return context


def _front_matter(metrics: dict[str, Any], context: dict[str, Any]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    data, method = context["data"], metrics.get("method")
    results = []
    if "test_accuracy" in metrics and data:
        samples = {"samples": metrics["test_samples"]} if "test_samples" in metrics else None
        results.append(
            EvalResult(
                task_type="image-classification",
                task_name="Image Classification",
                dataset_type=data["hub"] or "imagefolder",
                dataset_name=data["title"],
                dataset_split="test",
                dataset_args=samples,
                metric_type="accuracy",
                metric_name="Test accuracy",
                metric_value=metrics["test_accuracy"],
            )
        )
    licence: dict[str, Any] = {}
    if "license" in metrics:
        identifier = re.sub(r"[^a-z0-9.+-]+", "-", metrics["license"].lower()).strip("-")
        known = identifier in HUB_LICENSES
        licence = (
            {"license": identifier} if known else {"license": "other", "license_name": identifier}
        )
    tags = ["image-classification", "vision", metrics.get("model_type"), "hf-cifar"]
    tags += ["cifar10"] if data and data["cifar10"] else []
    tags += ["lora", "peft"] if method == "lora" else ["linear-probe"] if method == "linear" else []
    card = ModelCardData(
        **licence,
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=[tag for tag in tags if tag],
        base_model=context["hub_base"],
        base_model_relation=("adapter" if metrics.get("adapter") else "finetune")
        if context["hub_base"]
        else None,
        datasets=[data["hub"]] if data and data["hub"] else None,
        metrics=["accuracy"] if "test_accuracy" in metrics else None,
        model_name=context["name"],
        eval_results=results or None,
    )
    if not results:
        card.pop("model_name")  # only the model-index needs it; alone it is no key of the Hub's
    return card.to_yaml()


def _present(value: Any) -> Any:
    """Without None, NaN, infinities and what is empty: the template asks `is defined` and nothing
    else.
    """
    if isinstance(value, dict):
        pruned = {key: _present(item) for key, item in value.items()}
        return {key: item for key, item in pruned.items() if not _absent(item)}
    if isinstance(value, list):
        return [_present(item) for item in value]
    return value


def _absent(value: Any) -> bool:
    return (
        value is None
        or value in ({}, [], "")
        or (isinstance(value, float) and not math.isfinite(value))
    )


def _is_hub_id(name: str) -> bool:
    """namespace/name. Folders appear in metrics.json by their base name, so they have no slash."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def _dataset(metrics: dict[str, Any]) -> dict[str, Any] | None:
    """Title, Hub id (or None) and whether it is CIFAR-10, by name: other sets (CINIC-10) have the
    same ten labels.
    """
    if "dataset" not in metrics:
        return None
    name = metrics["dataset"]
    stem = name.rstrip("/").rsplit("/", 1)[-1]
    sample = name == "sample"
    cifar10 = (
        sample
        or re.fullmatch(r"cifar[-_]?10([-_](batches|python|binary).*)?", stem.lower()) is not None
    )
    if cifar10:
        title = "CIFAR-10 (the sample that hf-cifar carries)" if sample else "CIFAR-10"
        return {"title": title, "hub": "uoft-cs/cifar10", "cifar10": True}
    return {
        "title": name if _is_hub_id(name) else stem,
        "hub": name if _is_hub_id(name) else None,
        "cifar10": False,
    }


def _results(metrics: dict[str, Any]) -> dict[str, Any] | None:
    """Header and rows of the results table, as text; one column for each split that was scored."""
    splits = [split for split in ("test", "validation") if f"{split}_accuracy" in metrics]
    rows: list[list[str]] = []

    def add(title: str, key: str, form: Callable[[Any], str]) -> None:
        cells = [
            form(metrics[f"{split}_{key}"]) if f"{split}_{key}" in metrics else "–"
            for split in splits
        ]
        if any(cell != "–" for cell in cells):
            rows.append([title, *cells])

    add("Accuracy", "accuracy", _percent)
    add(
        "95 % interval (Wilson)",
        "accuracy_ci95",
        lambda ends: f"{_percent(ends[0])} to {_percent(ends[1])}",
    )
    add("Top-5 accuracy", "top5_accuracy", _percent)
    add("Macro F1", "f1_macro", lambda value: f"{value:.4f}")
    add("Negative log-likelihood (nats)", "nll", lambda value: f"{value:.4f}")
    add("Expected calibration error (15 bins)", "ece", _percent)
    add("Images", "samples", _count)
    return {"splits": splits, "rows": rows} if splits else None


def _classes(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Accuracy of each class, with interval and count where the confusion matrix tells them."""
    labels, matrix = metrics.get("labels", []), metrics.get("test_confusion_matrix")
    rows = []
    for name, value in metrics.get("test_per_class_accuracy", {}).items():
        row: dict[str, Any] = {"name": name, "accuracy": value}
        if matrix and name in labels:
            counts = matrix[labels.index(name)]
            row["count"] = sum(counts)
            row["low"], row["high"] = wilson(counts[labels.index(name)], sum(counts))
        rows.append(row)
    return rows


def _confused_pairs(
    matrix: list[list[int]], names: list[str], limit: int = 3
) -> list[dict[str, Any]]:
    """The pairs of classes most often taken for each other, counted in both directions."""
    pairs: list[dict[str, Any]] = [
        {"first": names[a], "second": names[b], "forth": matrix[a][b], "back": matrix[b][a]}
        for a in range(len(names))
        for b in range(a + 1, len(names))
        if matrix[a][b] + matrix[b][a]
    ]
    return sorted(pairs, key=lambda pair: -(pair["forth"] + pair["back"]))[:limit]


def card_template() -> Path:
    """The card's Jinja template: inside the package in a wheel, at the repository's top level in a
    checkout.
    """
    return packaged("model_cards") / "card.md.j2"


def write_card(folder: Path) -> None:
    """Writes `README.md`, the model card, of a run from its metrics.json alone (and the plots that
    lie there).

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
        raise UserError(
            f"{path} is missing: a card needs a finished run, train or evaluate it first"
        ) from None
    except ValueError as error:
        raise UserError(
            f"{path} is no valid JSON ({error}): evaluate the run again to write it anew"
        ) from None
    if not isinstance(metrics, dict):
        raise UserError(
            f"{path} must hold one JSON object: evaluate the run again to write it anew"
        )

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update({name: keeps_absent(form) for name, form in FORMATS.items()})
    template = environment.from_string(card_template().read_text(encoding="utf-8"))
    text = template.render(card_context(metrics, folder))
    partial = folder / "README.md.partial"
    partial.write_text(re.sub(r"\n{3,}", "\n\n", text), encoding="utf-8")
    os.replace(partial, folder / "README.md")
