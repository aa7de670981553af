"""tasks/NAME/ in the folder of a run with several tasks: for each task a model of its own, which
`pipeline` loads, with metrics, predictions, plots and card.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_cifar.files import write_json, write_text
from hf_cifar.models.config import load_config
from hf_cifar.models.inspect_repo import fetch_model
from hf_cifar.models.pretrained import load_weights
from hf_cifar.models.task_heads import keep_one_task, task_columns
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.reporting.model_card import write_card
from hf_cifar.reporting.plots import write_plots
from hf_cifar.reporting.predictions import write_predictions
from hf_cifar.reporting.result_warnings import result_warnings

# What metrics.json of the run says about all tasks together, or about what only its folder has.
OF_THE_RUN = ("tasks", "warnings", "labels", "adapter", "hub_model_id")


@dataclass(frozen=True)
class TaskResult:
    """The scores and answers of a task, from which its folder is written.

    recipe: what recipe.yaml says. scores: of the task, as metrics.json has them. labels: int64 [n]
    of the test images; None where there are none. probabilities: float64 [n, C] for them.
    pictures: gives the test images of the named rows as uint8 [H, W, 3].
    """

    name: str
    recipe: Recipe
    scores: dict[str, Any]
    labels: np.ndarray | None
    probabilities: np.ndarray | None
    pictures: Callable[[Sequence[int]], list[np.ndarray]]


def write_task_folders(
    folder: Path, metrics: dict[str, Any], results: Sequence[TaskResult]
) -> None:
    """Write a folder for each task beside the joint model, which lies in `folder`."""
    columns = task_columns({result.name: result.scores["labels"] for result in results})
    for result in results:
        of_task = folder / "tasks" / result.name
        of_task.mkdir(parents=True)
        files = fetch_model(str(folder), classifier=True)
        model = load_weights(files, load_config(files))[0]
        keep_one_task(model, columns[result.name], result.scores["labels"])
        model.save_pretrained(of_task)
        shutil.copy(folder / "preprocessor_config.json", of_task)
        write_text(of_task / "recipe.yaml", result.recipe.to_yaml())
        task_metrics = metrics_of_task(metrics, result)
        write_json(of_task / "metrics.json", task_metrics)
        if result.labels is not None and result.probabilities is not None:
            rows = np.arange(len(result.labels))
            names = result.scores["labels"]
            write_predictions(of_task, rows, result.labels, result.probabilities, names)
        write_plots(of_task, task_metrics, result.pictures)
        write_card(of_task)


def metrics_of_task(metrics: dict[str, Any], result: TaskResult) -> dict[str, Any]:
    """Return metrics.json of a task: what the run says of all its tasks, and the task's scores."""
    shared = {
        key: value
        for key, value in metrics.items()
        if key not in OF_THE_RUN and not key.startswith(("test_", "validation_", "train_accuracy"))
    }
    history = [
        {
            key: entry.get(f"eval_accuracy_{result.name}") if key == "eval_accuracy" else value
            for key, value in entry.items()
            if not key.startswith("eval_accuracy_")
        }
        for entry in metrics["history"]
    ]
    return {
        **shared,
        **result.scores,
        "run_name": f"{metrics['run_name']}/tasks/{result.name}",
        "history": history,
        "warnings": result_warnings(result.scores),
    }
