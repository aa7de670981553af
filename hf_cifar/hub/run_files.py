"""Which files of a finished run are pushed, and what others may read in them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from hf_cifar.errors import UserError
from hf_cifar.models.model_files import KNOWN_PICTURES
from hf_cifar.recipe.load import load_recipe
from hf_cifar.reporting.hub_metadata import eval_results
from hf_cifar.reporting.model_card import render_card

CLASSIFICATION = "image-classification"  # the task of a run whose metrics.json names no other
REQUIRED = (
    "model.safetensors",
    "config.json",
    "preprocessor_config.json",
    "README.md",
    "recipe.yaml",
    "metrics.json",
)
ADAPTER = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")
# Pushed as well, and removed from the repo if the run has them no more. A star stands for no slash
# and no leading dot.
OPTIONAL = (
    "adapter/*.json",
    "adapter/*.safetensors",
    "plots/*.png",
    KNOWN_PICTURES,
    "tasks/*/*.json",
    "tasks/*/*.safetensors",
    "tasks/*/*.md",
    "tasks/*/*.yaml",
    "tasks/*/plots/*.png",
)
EVAL_RESULTS = ".eval_results/hf-cifar.yaml"  # made for each push
GRAPHS = "onnx/*.onnx"  # what `hf-cifar export` writes, pushed only on request

Files = dict[str, Path | bytes]
"""Path in the repo -> the file of the run, or its bytes where the repo gets others."""


def finished_metrics(run: Path) -> dict[str, Any]:
    """Return metrics.json of a run. Raises UserError, with what is missing, if it is unfinished."""
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder; name the folder that `train` wrote")
    missing = [name for name in REQUIRED if not (run / name).is_file()]
    metrics: dict[str, Any] = {}
    if "metrics.json" not in missing:
        try:
            metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
            if (task := metrics.get("task", CLASSIFICATION)) != CLASSIFICATION:
                raise UserError(
                    f"{run}: its model is for {task}, and only image classifiers are pushed, whose"
                    " answers can be compared; fine-tune it, and push that run"
                )
            scored = math.isfinite(metrics["test_accuracy"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            scored = False
        if not scored:
            missing.append("test_accuracy in metrics.json")
            metrics = {}
    if (run / "adapter").is_dir() or metrics.get("adapter"):
        missing += [name for name in ADAPTER if not (run / name).is_file()]
    if rejects(run) and not (run / KNOWN_PICTURES).is_file():
        missing.append(KNOWN_PICTURES)
    if missing:
        raise UserError(
            f"{run} is not a finished run: it lacks {', '.join(missing)}; let its training finish"
        )
    return metrics


def files_to_push(run: Path, metrics: dict[str, Any], repo: str, onnx: bool = False) -> Files:
    """Return the files of a run that may be pushed, in the order that they are listed in.

    Whatever else stands in the run folder stays there. The recipe names local folders by their last
    part only, and card and metrics name `repo`. Raises UserError for a file that can't be read.

    onnx: take the exported graphs along; without them the card doesn't speak of them.
    """
    patterns = (*OPTIONAL, GRAPHS) if onnx else OPTIONAL
    paths = [path for pattern in patterns for path in sorted(run.glob(pattern)) if path.is_file()]
    names = [path.relative_to(run).as_posix() for path in paths]
    optional = [name for name in names if is_optional(name, onnx)]
    if onnx and not any(name.startswith("onnx/") for name in optional):
        raise UserError(f"{run}: has no onnx/*.onnx; run `hf-cifar export {run}` first")
    if not rejects(run):  # `predict` makes use of that file only where the config says so
        optional = [name for name in optional if name != KNOWN_PICTURES]
    files: Files = {name: run / name for name in (*REQUIRED, *optional)}
    for name in [name for name in files if Path(name).name == "recipe.yaml"]:
        recipe = load_recipe(str(run / name))
        public = recipe.public()
        if public != recipe:
            files[name] = public.to_yaml().encode()
    public_metrics = metrics | {"hub_model_id": repo}
    if not onnx:
        public_metrics.pop("export", None)
    if public_metrics != metrics:
        plots = [Path(name).stem for name in optional if name.startswith("plots/")]
        files["README.md"] = _card_for(run, metrics, public_metrics, plots).encode()
        files["metrics.json"] = (json.dumps(public_metrics, indent=1) + "\n").encode()
    if (results := eval_results(metrics)) is not None:
        files[EVAL_RESULTS] = results.encode()
    return files


def is_optional(name: str, onnx: bool = False) -> bool:
    """Return whether a path in a repo is one that a run may have or not.

    onnx: exported graphs are such files, too.
    """
    patterns = (*OPTIONAL, EVAL_RESULTS, *([GRAPHS] if onnx else []))
    expressions = [re.escape(pattern).replace(r"\*", "[^./][^/]*") for pattern in patterns]
    return any(re.fullmatch(expression, name) for expression in expressions)


def rejects(run: Path) -> bool:
    """Return whether config.json says that `hf-cifar calibrate` chose when to reject a picture."""
    try:
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and bool(config.get("reject"))


def file_size(file: Path | bytes) -> int:
    """Return the size of a file to push, in bytes."""
    return len(file) if isinstance(file, bytes) else file.stat().st_size


def _card_for(
    run: Path, metrics: dict[str, Any], public_metrics: dict[str, Any], plots: list[str]
) -> str:
    """Return the run's card as its public metrics make it, with snippets that load from the repo.
    What somebody wrote into the card stays.
    """
    folder_name = run.resolve().name
    try:
        card = (run / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{run / 'README.md'} can't be read as UTF-8 text ({error}): correct it and push again"
        ) from None
    if card == render_card(metrics, folder_name, plots):
        return render_card(public_metrics, folder_name, plots)
    location = metrics.get("hub_model_id") or f"./{metrics.get('run_name') or folder_name}"
    before, after = (
        json.dumps(name, ensure_ascii=False) for name in (location, public_metrics["hub_model_id"])
    )
    return card.replace(before, after)
