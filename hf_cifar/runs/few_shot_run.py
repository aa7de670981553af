"""A few-shot head on its frozen backbone as a run folder, which `pipeline` loads."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_cifar.evaluation.few_shot import FewShotData, Head, draw_rows, fit_heads
from hf_cifar.evaluation.metrics import classification_metrics
from hf_cifar.files import write_json
from hf_cifar.models.config import write_pixel_range
from hf_cifar.models.flops import forward_flops
from hf_cifar.models.structure import head as find_head
from hf_cifar.recipe.fields import DataKeys, ModelKeys
from hf_cifar.recipe.recipe import Recipe, public_name
from hf_cifar.reporting.check_report import check_report
from hf_cifar.reporting.model_card import write_card
from hf_cifar.reporting.plots import write_plots
from hf_cifar.reporting.predictions import write_predictions
from hf_cifar.reporting.provenance import commit, hardware_facts, peak_memory, versions
from hf_cifar.reporting.result_warnings import result_warnings
from hf_cifar.runs.folder import RunFolder

DESCRIPTION = {
    "means": "kept frozen under its class means",
    "logistic": "kept frozen under logistic regression",
    "refined": "kept frozen under class means refined on images without labels",
}


def save_few_shot_run(
    study: FewShotData,
    shots: int,
    result: dict[str, Any],
    backbone_word: str,
    overrides: dict[str, Any],
) -> Path:
    """Fit the head of the first draw of `shots` images a class and write it as a run; return its
    folder.

    The head is `guarded`, or `labels` without a refiner; test images choose nothing.

    result: what `few_shot` returned. backbone_word, overrides: of the command line, for the card.
    Raises UserError where the folder belongs to something else.
    """
    rows = draw_rows(study, shots, 0)
    labels = torch.from_numpy(study.data.train.labels).to(rows.device)[rows]
    heads = fit_heads(study, rows, labels)
    chosen = heads.get("guarded", heads["labels"])
    refined = study.refiner is not None and chosen.method == "refined"
    unlabelled_images = len(study.refiner.points[0]) if study.refiner and refined else 0
    recipe = _run_recipe(study, shots, "output_dir" in overrides)
    with RunFolder.claim(recipe, fresh=False) as folder:
        folder.write_recipe(recipe)
        check_report(study.data.label_names)
        flops = forward_flops(study.backbone.model, study.backbone.image_size, study.frozen.device)
        logits = chosen.linear.logits(study.test).double()
        probabilities = logits.softmax(1).cpu().numpy()
        metrics = {
            "run_name": folder.path.name,
            **classification_metrics(
                probabilities, study.test_labels, study.data.label_names, prefix="test"
            ),
            "few_shot": {
                "shots": shots,
                "draw": 0,
                "method": chosen.method,
                "held_out_accuracy": chosen.held_out,
                "unlabelled_images": unlabelled_images,
                **_over_draws(result, shots),
            },
            **_facts(study, recipe, chosen, len(rows)),
            "forward_flops_per_image": flops,
            "launch_command": _command(backbone_word, shots, study.refiner is not None, overrides),
        }
        metrics["warnings"] = result_warnings(metrics)
        model = _model_with_head(study, chosen)
        with folder.writing() as aside:
            model.save_pretrained(aside)
            study.backbone.processor.save_pretrained(aside)
            write_json(aside / "metrics.json", metrics)
            write_predictions(
                aside,
                np.arange(len(probabilities)),
                study.test_labels,
                probabilities,
                study.data.label_names,
            )
            write_plots(aside, metrics, lambda places: _pictures(study, places))
            write_card(aside)
    return folder.path


def _over_draws(result: dict[str, Any], shots: int) -> dict[str, Any]:
    """Return the mean over draws with its interval, if so many shots were measured."""
    for method in ("guarded", "labels"):
        for row in result["results"]:
            if (row["shots"], row["method"]) == (shots, method):
                return {"draws": result["draws"]} | {k: row[k] for k in ("mean", "low", "high")}
    return {}


def _run_recipe(study: FewShotData, shots: int, has_folder: bool) -> Recipe:
    """Return the recipe of `method: linear` that trains on the same images, or on as many others
    where `max_train_samples` cuts the pool that labels are drawn from.
    """
    names = [field.name for block in (ModelKeys, DataKeys) for field in dataclasses.fields(block)]
    keys: dict[str, Any] = {name: getattr(study.recipe, name) for name in names}
    keys |= {"train_samples_per_class": shots, "dropout": None, "drop_path_rate": None}
    recipe = Recipe(**keys, method="linear", name=study.recipe.name)
    default = f"runs/{study.recipe.name.replace('/', '-')}-{shots}-shot"
    recipe.training |= {
        "seed": study.recipe.seed,
        "bf16": study.frozen.bf16,
        "output_dir": study.recipe.training["output_dir"] if has_folder else default,
    }
    recipe.channels_last = study.frozen.channels_last
    return recipe


def _facts(study: FewShotData, recipe: Recipe, chosen: Head, images: int) -> dict[str, Any]:
    """Return what metrics.json says about data, model, hardware and versions."""
    data, backbone = study.data, study.backbone
    name = public_name(recipe.model_name_or_path)
    is_hub_id = name == recipe.model_name_or_path and not name.startswith("pypi:")
    return {
        "labels": data.label_names,
        "dataset": data.source,
        "dataset_license": data.license,
        "dataset_fingerprint": data.fingerprint,
        "train_samples": images,
        "method": "few-shot",
        "method_description": DESCRIPTION[chosen.method] + ", fitted",
        "tags": ["few-shot"],
        "adapter": False,
        "base_model": None if recipe.from_scratch else name,
        "base_model_revision": recipe.model_revision if is_hub_id else None,
        "base_model_license": backbone.license,
        "model_type": backbone.model.config.model_type,
        "model_class": type(backbone.model).__name__,
        "image_size": backbone.image_size,
        "total_parameters": sum(p.numel() for p in backbone.model.parameters()),
        "trainable_parameters": chosen.linear.weight.numel() + chosen.linear.bias.numel(),
        "hardware": hardware_facts(study.frozen.device, 1),
        "versions": versions(),
        "commit": commit(),
        "seed": recipe.seed,
        "precision": "bf16" if study.frozen.bf16 else "fp32",
        "recipe": recipe.public().to_dict(),
        "license": recipe.license or backbone.license,
        **peak_memory(study.frozen.device),
    }


def _command(word: str, shots: int, unlabelled: bool, overrides: dict[str, Any]) -> str:
    """Return the command line of the run, with folders by name only."""
    words = ["hf-cifar", "few-shot", public_name(word), "--shots", str(shots)]
    words += ["--save", str(shots), *(["--unlabelled"] if unlabelled else [])]
    for name, value in overrides.items():
        if name != "output_dir":
            words += [f"--{name}", public_name(str(value))]
    return shlex.join(words)


@torch.no_grad()
def _model_with_head(study: FewShotData, chosen: Head) -> Any:
    """Return the backbone on the CPU with the head in place of its own."""
    model = study.backbone.model.cpu()
    _, linear = find_head(model)
    linear.weight.copy_(chosen.linear.weight)
    linear.bias.copy_(chosen.linear.bias)
    write_pixel_range(model.config, study.data.pixel_range)
    return model


def _pictures(study: FewShotData, places: Any) -> list[np.ndarray]:
    """Return uint8 [H, W, 3] for places in the test split."""
    split = study.data.test
    assert split is not None
    return [split.images.picture(int(split.rows[place])) for place in places]
