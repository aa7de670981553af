"""`hf-cifar train`: train a recipe and say what came out."""

from __future__ import annotations

import argparse
import atexit
import gc
from pathlib import Path
from typing import Any

from hf_cifar.cli.options import new_recipe_command, quiet_libraries
from hf_cifar.cli.output import say
from hf_cifar.distributed import rank
from hf_cifar.recipe.load import load_recipe


def add_parser(commands: Any) -> None:
    help = "Train a recipe and leave a folder that `pipeline` loads."
    command = new_recipe_command(commands, "train", help)
    command.set_defaults(run=run)
    command.add_argument(
        "--fresh", action="store_true", help="start over: remove what an earlier run left here"
    )


def run(args: argparse.Namespace) -> None:
    recipe = load_recipe(args.recipe, args.keys)
    quiet_libraries()
    from hf_cifar.runs.run import train_recipe

    # accelerate collects garbage before the first step. Without the libraries' objects, which stay
    # to the end, that takes 0.6 s less.
    gc.freeze()
    atexit.register(gc.unfreeze)  # or Triton 3.9 reports its objects as leaked when Python ends
    result = train_recipe(recipe, fresh=args.fresh)
    if rank():
        return
    _report(result.metrics, result.path)
    if recipe.training["push_to_hub"]:
        from hf_cifar.hub.push import push
        from hf_cifar.hub.upload import PushOptions

        private = bool(recipe.training["hub_private_repo"])
        push(result.path, recipe.training["hub_model_id"], PushOptions(private=private, say=say))


def _report(metrics: dict[str, Any], folder: Path) -> None:
    scored = {f"{task}: ": scores for task, scores in metrics.get("tasks", {}).items()}
    for title, scores in (scored or {"": metrics}).items():
        if "test_accuracy" in scores:
            low, high = scores["test_accuracy_ci95"]
            say(
                f"{title}test accuracy {scores['test_accuracy']:.4f}"
                f" (95 % interval {low:.4f} to {high:.4f}, {scores['test_samples']} images)"
            )
    for line in metrics.get("warnings", ()):
        say(f"warning: {line}")
    files = {"model": "", "card": "README.md", "plots": "plots", "metrics": "metrics.json"}
    for title, name in files.items():
        say(f"{title:<9}{folder / name}")
