"""What images without labels are worth: a few labels with and without them, for the same steps,
labelled batches and seeds.

The images without labels are all training images (FixMatch, `objective: semi_supervised`); the
other side is fine-tuned on the labels alone, with the same crop and mirroring.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
from pathlib import Path
from typing import Any

import common

HERE = Path(__file__).parent
SIDES: dict[str, dict[str, Any]] = {
    "labels alone": {"objective": "classification", "auto_augment": None},
    "semi-supervised": {},
}
FACTS = ("unlabelled_confident_share", "unlabelled_confident_accuracy", "train_runtime")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    import hf_cifar
    from hf_cifar.recipe.recipe import public_name

    logging.getLogger("hf_cifar").setLevel(logging.ERROR)
    keys: dict[str, Any] = {
        "model_name_or_path": args.model,
        "dataset_name": args.data,
        "image_size": args.image_size,
        "max_steps": args.steps,
        "per_device_train_batch_size": args.batch,
        "learning_rate": args.learning_rate,
        "unlabelled_ratio": args.ratio,
        "unlabelled_threshold": args.threshold,
        "max_eval_samples": args.test_images,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    options = " ".join(
        f"--{name.replace('_', '-')} {getattr(args, name)}"
        for name in ("image_size", "steps", "batch", "learning_rate", "ratio", "threshold", "seeds")
    )
    cut = f" --test-images {args.test_images}" if args.test_images else ""
    result: dict[str, Any] = {
        "benchmark": "semi_supervised",
        "command": f"python benchmarks/semi_supervised.py --model {public_name(args.model)}"
        f" --recipe {args.recipe} --shots {' '.join(map(str, args.shots))} {options}{cut}",
        **common.machine_facts(torch.device("cpu")),
        "runs": [],
    }
    for shots in args.shots:
        for seed in range(args.seeds):
            for side, more in SIDES.items():
                with tempfile.TemporaryDirectory() as folder:
                    metrics = hf_cifar.train(
                        args.recipe,
                        output_dir=f"{folder}/run",
                        seed=seed,
                        train_samples_per_class=shots,
                        **keys | more,
                    ).metrics
                result["runs"].append(
                    {"labels_per_class": shots, "seed": seed, "side": side}
                    | {name: metrics.get(name) for name in FACTS}
                    | {name: metrics[f"test_{name}"] for name in ("accuracy", "samples", "nll")}
                )
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps(result | {"gains": gains(result)}, indent=1) + "\n")
                accuracy = 100 * metrics["test_accuracy"]
                print(f"{shots} a class, seed {seed}, {side}: {accuracy:.2f}", flush=True)
    return result | {"gains": gains(result)}


def gains(result: dict[str, Any]) -> dict[str, float]:
    """Return by labels a class how much more test accuracy the second side has than the first, the
    mean over the seeds that both have been run with.
    """
    accuracies = {
        (run["labels_per_class"], run["seed"], run["side"]): run["accuracy"]
        for run in result["runs"]
    }
    first, second = SIDES
    differences: dict[str, list[float]] = {}
    for (shots, seed, side), accuracy in accuracies.items():
        if side == second:
            difference = accuracy - accuracies[shots, seed, first]
            differences.setdefault(str(shots), []).append(difference)
    return {shots: statistics.fmean(values) for shots, values in differences.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="microsoft/resnet-18")
    parser.add_argument("--recipe", default="semi/resnet_18_40_labels")
    parser.add_argument("--data", default="sample", metavar="DIR", help="CIFAR-10; default: sample")
    parser.add_argument("--shots", type=int, nargs="+", default=[4, 25], help="labels of a class")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=20, help="labelled images of a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--ratio", type=int, default=3, help="unlabelled images for each of those")
    parser.add_argument("--threshold", type=float, default=0.95)
    parser.add_argument("--test-images", type=int, help="default: all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "semi-supervised.json")
    args = parser.parse_args()
    for shots, gain in measure(args)["gains"].items():
        print(f"{shots} labels a class: {100 * gain:+.2f} points")


if __name__ == "__main__":
    main()
