"""What a teacher is worth: a student trained with and without one, for the same steps and seeds.

The teacher is a finished run (--teacher). The student learns from labels alone, from labels and the
teacher's answers to each image as it is (`plain`), or to each epoch's view of it (`each_epoch`).
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
    "labels alone": {},
    "plain": {"objective": "distillation", "teacher_views": "plain"},
    "each_epoch": {"objective": "distillation", "teacher_views": "each_epoch"},
}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    import hf_cifar
    from hf_cifar.recipe.recipe import public_name

    logging.getLogger("hf_cifar").setLevel(logging.ERROR)
    keys: dict[str, Any] = {
        "model_name_or_path": args.student,
        "dataset_name": args.data,
        "image_size": args.image_size,
        "num_train_epochs": args.epochs,
        "validation_fraction": 0.0,
        "disable_tqdm": True,
    }
    if args.images:
        keys["max_train_samples"] = args.images
    if args.test_images:
        keys["max_eval_samples"] = args.test_images
    accuracies: dict[str, list[float]] = {side: [] for side in args.sides}
    steps = 0
    for seed in range(args.seeds):
        for side in args.sides:
            more = dict(SIDES[side])
            if more:
                more |= {"teacher": str(args.teacher), "teacher_weight": args.weight}
            with tempfile.TemporaryDirectory() as folder:
                run = hf_cifar.train(
                    args.recipe, output_dir=f"{folder}/run", seed=seed, **keys | more
                )
            accuracies[side].append(run.metrics["test_accuracy"])
            steps = run.metrics["global_step"]
            print(f"seed {seed}, {side}: {100 * accuracies[side][-1]:.2f}", flush=True)
    teacher = json.loads((args.teacher / "metrics.json").read_text())
    student = public_name(args.student)
    cut = "".join(
        f" --{name} {value}"
        for name, value in (("images", args.images), ("test-images", args.test_images))
        if value
    )
    return {
        "benchmark": "distillation",
        "command": f"python benchmarks/distillation.py --student {student} --teacher RUN"
        f" --recipe {args.recipe} --image-size {args.image_size} --epochs {args.epochs}"
        f" --weight {args.weight} --seeds {args.seeds}{cut}",
        "teacher": {
            "model": teacher["base_model"],
            "command": teacher["launch_command"],
            "image_size": teacher["image_size"],
            "test_accuracy": teacher["test_accuracy"],
        },
        "student": student,
        "train_samples": run.metrics["train_samples"],
        "test_samples": run.metrics["test_samples"],
        "steps": steps,
        "accuracies": accuracies,
        "means": {side: statistics.fmean(values) for side, values in accuracies.items()},
        **common.machine_facts(torch.device("cpu")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", default="microsoft/resnet-18")
    parser.add_argument("--teacher", type=Path, required=True, help="a finished run")
    parser.add_argument("--recipe", default="resnet_18/full", help="of the student")
    parser.add_argument("--data", default="sample", metavar="DIR", help="CIFAR-10; default: sample")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--images", type=int, help="to train on; default: all")
    parser.add_argument("--test-images", type=int, help="default: all")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--weight", type=float, default=0.5, help="of the teacher in the loss")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--json", type=Path, default=HERE / "results" / "distillation.json")
    args = parser.parse_args()
    result = measure(args)
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    for side, mean in result["means"].items():
        print(f"{side:<14}{100 * mean:.2f}")


if __name__ == "__main__":
    main()
