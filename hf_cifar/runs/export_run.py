"""`hf-cifar export`: a finished run as ONNX graphs, measured against the model that they come from.

The files have the layout that transformers.js reads: config.json, preprocessor_config.json and
onnx/model.onnx, with model_quantized.onnx (8 bits) and model_fp16.onnx beside it. Temperature,
labels and the threshold for "none of these" are in the weights and in config.json already.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_cifar.data.splits import Split
from hf_cifar.errors import UserError
from hf_cifar.evaluation.classifier import Classifier, load_classifier
from hf_cifar.evaluation.target_data import load_target, target_recipe
from hf_cifar.export.choose_8_bit import choose_8_bit, choose_closest
from hf_cifar.export.measure import TORCH, all_logits, closeness, speeds
from hf_cifar.export.preprocessing_graph import write_preprocessing_graph
from hf_cifar.export.quantize import write_half
from hf_cifar.export.to_onnx import OPSET, check_packages, to_onnx
from hf_cifar.files import atomic_file, refused_write, write_json
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.reporting.provenance import hardware_facts
from hf_cifar.runs.additions import add_to_run, is_run
from hf_cifar.runs.folder import MARKER

FOLDER, REJECTED = "onnx", "onnx/rejected"
FLOAT32, INT8, FLOAT16, WITH_PREPROCESSING = "float32", "int8", "fp16", "with_preprocessing"
FILES = {
    FLOAT32: "model.onnx",
    INT8: "model_quantized.onnx",
    FLOAT16: "model_fp16.onnx",
    WITH_PREPROCESSING: "model_with_preprocessing.onnx",
}
BESIDE = ("config.json", "preprocessor_config.json")  # what a reader of the graph needs as well
REPORT = "export.json"
CALIBRATION_IMAGES, JUDGES, TRAIN_JUDGES = 128, 1000, 100
CLASSIFICATION = "image-classification"


@dataclass(frozen=True)
class ExportOptions:
    """Which graphs to write. max_loss: accuracy that a graph may lose, in points. out: the folder;
    None for the run's own.
    """

    int8: bool = False
    fp16: bool = False
    with_preprocessing: bool = False
    max_loss: float = 0.5
    out: Path | None = None


def export_run(run: str, keys: dict[str, Any], options: ExportOptions) -> dict[str, Any]:
    """Write a run's ONNX graphs and return what was measured, as JSON types.

    files: by kind, below the folder. agreement, max_logit_difference: of float32 against torch, on
    the test images. accuracy: of torch and each kind. kinds: all that was measured of each.
    images_per_second: by torch and kind, then by batch. int8_kind: static or dynamic. rejected:
    kinds that lose more than `max_loss`; their files lie in onnx/rejected/.

    keys: data keys, such as max_eval_samples. Raises UserError for what is no finished run of an
    image classifier, for a family that can't be exported, and where the files can't be written.
    """
    check_packages()
    folder = _finished_run(run)
    out = _checked_out(options.out, folder)
    classifier = load_classifier(run, several_labels=True)
    model = classifier.model.cpu()
    classifier = dataclasses.replace(classifier, model=model, device=torch.device("cpu"))
    recipe = target_recipe(run, None, keys)
    test, labels = load_target(classifier, recipe, "test")
    with tempfile.TemporaryDirectory(prefix="hf-cifar-export-") as scratch:
        paths = {FLOAT32: Path(scratch, FILES[FLOAT32])}
        exported = to_onnx(model, classifier.transforms.image_size, run)
        exported.save(paths[FLOAT32])
        facts: dict[str, Any] = {
            "opset": OPSET,
            "exporter": exported.exporter,
            "exporter_reason": exported.reason,
        }
        if options.int8:
            paths[INT8] = Path(scratch, FILES[INT8])
            facts |= _make_8_bit(classifier, recipe, folder, paths, options.max_loss / 100)
        if options.fp16:
            paths[FLOAT16] = Path(scratch, FILES[FLOAT16])
            write_half(paths[FLOAT32], paths[FLOAT16])
        facts |= _measure(classifier, test, labels, paths, options.max_loss)
        if options.with_preprocessing:
            paths[WITH_PREPROCESSING] = Path(scratch, FILES[WITH_PREPROCESSING])
            processor = classifier.transforms.processor
            write_preprocessing_graph(paths[FLOAT32], processor, paths[WITH_PREPROCESSING])
        rejected = facts["rejected"]
        facts["files"] = {
            kind: f"{REJECTED if kind in rejected else FOLDER}/{path.name}"
            for kind, path in paths.items()
        }
        facts["bytes"] = {kind: path.stat().st_size for kind, path in paths.items()}
        _publish(folder, out, facts, paths)
    return facts


def _finished_run(run: str) -> Path:
    """Return the folder of a finished run of an image classifier. Raises UserError."""
    folder = Path(run).expanduser()
    if not is_run(run):
        unfinished = (folder / MARKER).is_file()
        problem = (
            "the run is not finished; let its training end"
            if unfinished
            else "it is no folder of a finished run; name the folder that `train` wrote"
        )
        raise UserError(f"{run}: {problem}")
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        task = metrics.get("task", CLASSIFICATION)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{run}: metrics.json is damaged ({type(error).__name__}); train again"
        ) from None
    if task != CLASSIFICATION:
        raise UserError(
            f"{run}: its model is for {task}, and export takes image classifiers; fine-tune one"
        )
    return folder


def _checked_out(out: Path | None, run: Path) -> Path:
    """Return the folder for the files. Raises UserError for one that holds something else."""
    if out is None or out.expanduser().resolve() == run.resolve():
        return run
    out = out.expanduser()
    try:
        held = sorted(path.name for path in out.iterdir()) if out.exists() else []
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; name another folder") from None
    if held and (REPORT not in held or MARKER in held):
        raise UserError(
            f"--out {out}: holds something else than an export ({held[0]}); name another folder"
        )
    return out


def _make_8_bit(
    classifier: Classifier, recipe: Recipe, run: Path, paths: dict[str, Path], max_loss: float
) -> dict[str, Any]:
    """Write the 8-bit graph and return how it was made and chosen."""
    train, _ = load_target(classifier, recipe, "train")
    order = np.random.Generator(np.random.Philox(recipe.seed)).permutation(len(train))
    first = min(CALIBRATION_IMAGES, (len(train) + 1) // 2)
    calibration = _rows(train, np.sort(order[:first]))
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    if metrics.get("validation_samples"):
        judges, labels = load_target(classifier, recipe, "validation")
        judges, labels = _rows(judges, np.arange(len(judges))[:JUDGES]), labels[:JUDGES]
        chosen, tried = choose_8_bit(
            paths[FLOAT32], classifier, calibration, (judges, labels), max_loss
        )
    else:
        judges = _rows(train, np.sort(order[first : first + TRAIN_JUDGES]))
        chosen, tried = choose_closest(paths[FLOAT32], classifier, calibration, judges)
    shutil.copyfile(chosen.path, paths[INT8])
    return {
        "int8_kind": chosen.recipe.kind,
        "int8_recipe": str(chosen.recipe),
        "int8_tried": {
            str(one.recipe): {
                "loss": one.loss,
                "error": one.error,
                "logit_difference": one.difference,
                "images_per_second": one.speed,
            }
            for one in tried
        },
        "calibration_images": len(calibration),
        "judging_images": len(judges),
        "judging_split": judges.name,
    }


def _rows(split: Split, places: np.ndarray) -> Split:
    return dataclasses.replace(split, rows=split.rows[places], labels=split.labels[places])


def _measure(
    classifier: Classifier,
    test: Split,
    labels: np.ndarray,
    paths: dict[str, Path],
    max_loss: float,
) -> dict[str, Any]:
    kinds = closeness(all_logits(classifier, test, paths), labels)
    rates = speeds(classifier.model, paths, classifier.transforms.image_size)
    accuracy = {kind: facts["accuracy"] for kind, facts in kinds.items()}
    return {
        "agreement": kinds[FLOAT32]["agreement"],
        "max_logit_difference": kinds[FLOAT32]["max_logit_difference"],
        "accuracy": accuracy,
        "images_per_second": rates,
        "threads": 1,
        "cpu": hardware_facts(torch.device("cpu"), 1)["cpu"],
        "kinds": kinds,
        "test_images": len(test),
        "max_loss": max_loss,
        "rejected": [
            kind for kind in paths if 100 * (accuracy[TORCH] - accuracy[kind]) > max_loss + 1e-9
        ],
    }


def _publish(run: Path, out: Path, facts: dict[str, Any], paths: dict[str, Path]) -> None:
    """Put the files in their places, and remove those of an export before that are not made anew.

    Raises UserError where the folder is in use or can't be written.
    """
    if out == run:

        def write(aside: Path) -> None:
            (aside / REJECTED).mkdir(parents=True)
            (run / FOLDER).mkdir(exist_ok=True)
            for kind, name in facts["files"].items():
                shutil.copyfile(paths[kind], aside / name)

        add_to_run(run, "export", facts, write)
    else:
        try:
            (out / REJECTED).mkdir(parents=True, exist_ok=True)
            sources = {out / name: run / name for name in BESIDE}
            sources |= {out / name: paths[kind] for kind, name in facts["files"].items()}
            for place, source in sources.items():
                with source.open("rb") as original, atomic_file(place) as copy:
                    shutil.copyfileobj(original, copy)
            write_json(out / REPORT, facts)
        except OSError as error:
            reason = refused_write(error) or error.strerror
            raise UserError(f"--out {out}: {reason}; name another folder") from None
    for folder in (FOLDER, REJECTED):
        for name in FILES.values():
            if f"{folder}/{name}" not in facts["files"].values():
                (out / folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it holds something, or is not there
        (out / REJECTED).rmdir()
