"""What answering several tasks with one model costs and gives.

two_sets: ten classes of CIFAR-10 and ten garments of Fashion-MNIST, by one backbone and by one for
each, where each image is seen as often: the accuracies, and the time to answer both for a picture.
lora: likewise the bytes of adapters and heads, with LoRA.
orientation: few labels of CIFAR-10, with and without an auxiliary task that is made from the same
pictures: by how much each was turned.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import common

HERE = Path(__file__).parent


def train(folder: Path, name: str, args: argparse.Namespace, **keys: Any) -> Any:
    """Return the run of `keys` on top of those that all runs of the benchmark share."""
    import hf_cifar

    shared = {
        "image_size": args.image_size,
        "num_train_epochs": args.epochs,
        "max_eval_samples": args.test_images,
        "validation_fraction": 0.0,
        "layer_decay": 0.75,
        "weight_decay": 0.05,
        "per_device_train_batch_size": 64,
        "tta": "none",
        "label_smoothing_factor": 0.0,
        "disable_tqdm": True,
    }
    start = time.perf_counter()
    run = hf_cifar.train(args.recipe, output_dir=str(folder / name), **shared | keys)
    metrics = run.metrics
    print(
        f"{name}: {metrics['test_accuracy']:.4f}, {metrics['global_step']} steps,"
        f" {time.perf_counter() - start:.0f} s",
        flush=True,
    )
    return run


def sets(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the data keys of the two tasks."""
    return {
        "classes": {"dataset_name": args.data, "max_train_samples": args.images},
        "garments": {"dataset_name": str(args.garments), "max_train_samples": args.images},
    }


def two_sets(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    accuracies: dict[str, dict[str, list[float]]] = {
        task: {"alone": [], "together": []} for task in sets(args)
    }
    runs: dict[str, Any] = {}
    for seed in range(args.seeds):
        keys = {"model_name_or_path": args.model, "seed": seed}
        for task, data in sets(args).items():
            runs[task] = train(folder, f"{task}-{seed}", args, **keys, **data)
            accuracies[task]["alone"].append(runs[task].metrics["test_accuracy"])
        tasks = [{"name": task, **data} for task, data in sets(args).items()]
        joint = {"objective": "multi_task", "tasks": tasks}
        runs["together"] = train(folder, f"together-{seed}", args, **keys, **joint)
        for task, values in accuracies.items():
            values["together"].append(runs["together"].metrics[f"test_accuracy_{task}"])
    alone = [str(runs[task].path) for task in accuracies]
    seconds = answer_seconds([[str(runs["together"].path)], alone], args.turns)
    return {
        "accuracies": accuracies,
        "points": {
            task: 100 * (statistics.fmean(v["together"]) - statistics.fmean(v["alone"]))
            for task, v in accuracies.items()
        },
        "steps": {name: run.metrics["global_step"] for name, run in runs.items()},
        "milliseconds_a_picture": {"together": 1e3 * seconds[0], "alone": 1e3 * seconds[1]},
        "time_ratio": seconds[0] / seconds[1],
    }


def answer_seconds(sides: list[list[str]], turns: int) -> list[float]:
    """Return for each side the median seconds to answer a picture with all of its models, in turn:
    resize it, and one forward pass of each.
    """
    import torch

    from hf_cifar.evaluation.classifier import load_classifier

    models = [[load_classifier(name, several_tasks=True) for name in side] for side in sides]
    picture = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(turns + 3):
        for side, classifiers in enumerate(models):
            start = time.perf_counter()
            with torch.inference_mode():
                for classifier in classifiers:
                    pixels = classifier.transforms.evaluate(picture)
                    classifier.model(pixel_values=pixels).logits.softmax(-1)
            if turn >= 3:
                seconds[side].append(time.perf_counter() - start)
    return [statistics.median(values) for values in seconds]


def lora(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    keys = {"model_name_or_path": args.lora_model, "method": "lora", "image_size": 98}
    keys |= {"num_train_epochs": args.lora_epochs, "layer_decay": 1.0, "weight_decay": 0.0}
    keys |= {"max_eval_samples": args.lora_test_images}
    data = {task: d | {"max_train_samples": args.lora_images} for task, d in sets(args).items()}
    runs = {task: train(folder, f"lora-{task}", args, **keys, **d) for task, d in data.items()}
    tasks = [{"name": task, **d} for task, d in data.items()]
    joint = {"objective": "multi_task", "tasks": tasks}
    runs["together"] = train(folder, "lora-together", args, **keys, **joint)
    sizes = {
        name: sum(f.stat().st_size for f in (run.path / "adapter").iterdir())
        for name, run in runs.items()
    }
    together = sizes.pop("together")
    return {
        "adapter_and_heads_bytes": {"together": together, "alone": sizes},
        "disk_ratio": together / sum(sizes.values()),
        "accuracies": {
            task: {
                "alone": runs[task].metrics["test_accuracy"],
                "together": runs["together"].metrics[f"test_accuracy_{task}"],
            }
            for task in data
        },
    }


def orientation(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    data = {"dataset_name": args.data, "train_samples_per_class": args.labels}
    turned = {"name": "turned", "orientation": True, "weight": args.weight}
    sides: dict[str, dict[str, Any]] = {
        "labels alone": {},
        "with orientation": {"objective": "multi_task", "tasks": [{"name": "classes"}, turned]},
    }
    accuracies: dict[str, list[float]] = {side: [] for side in sides}
    of_turns = []
    for seed in range(args.seeds):
        for side, keys in sides.items():
            name = f"{side.replace(' ', '-')}-{seed}"
            keys = {"model_name_or_path": args.model, "seed": seed, **data, **keys}
            keys["num_train_epochs"] = args.orientation_epochs
            metrics = train(folder, name, args, **keys).metrics
            scores = metrics.get("tasks", {}).get("classes", metrics)
            accuracies[side].append(scores["test_accuracy"])
            if "tasks" in metrics:
                of_turns.append(metrics["test_accuracy_turned"])
    means = {side: statistics.fmean(values) for side, values in accuracies.items()}
    return {
        "labels_a_class": args.labels,
        "accuracies": accuracies,
        "points": 100 * (means["with orientation"] - means["labels alone"]),
        "accuracy_of_turns": of_turns,
    }


MEASURE = {"two_sets": two_sets, "lora": lora, "orientation": orientation}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=MEASURE, default=list(MEASURE))
    parser.add_argument("--model", default="microsoft/resnet-18")
    parser.add_argument("--lora-model", default="facebook/dinov2-small")
    parser.add_argument("--recipe", default="resnet_18/full", help="whose other keys are used")
    parser.add_argument("--data", default="uoft-cs/cifar10", metavar="DIR", help="CIFAR-10")
    parser.add_argument(
        "--garments",
        type=Path,
        required=True,
        metavar="DIR",
        help="Fashion-MNIST, as `hf-cifar data fetch` writes it",
    )
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=10_000, help="of each data set")
    parser.add_argument("--test-images", type=int, default=10_000, help="of each data set")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--lora-images", type=int, default=5_000, help="of each data set")
    parser.add_argument("--lora-test-images", type=int, default=10_000)
    parser.add_argument("--lora-epochs", type=float, default=1)
    parser.add_argument("--labels", type=int, default=100, help="of each class, for orientation")
    parser.add_argument("--orientation-epochs", type=float, default=10)
    parser.add_argument("--weight", type=float, default=0.5, help="of the orientation task")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=100, help="pictures that are timed")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "tasks.json")
    args = parser.parse_args()
    import torch

    from hf_cifar.recipe.recipe import public_name

    logging.getLogger("hf_cifar").setLevel(logging.ERROR)
    result = json.loads(args.json.read_text()) if args.json.is_file() else {}
    with tempfile.TemporaryDirectory(prefix="hf-cifar-bench-") as folder:
        for part in args.parts:
            start = time.perf_counter()
            figures = MEASURE[part](args, Path(folder))
            shown = {"data", "garments", "json", "parts", "model", "lora_model"}
            options = " ".join(
                f"--{name.replace('_', '-')} {value}"
                for name, value in vars(args).items()
                if name not in shown and value != parser.get_default(name)
            )
            model = args.lora_model if part == "lora" else args.model
            result[part] = {
                "model": public_name(model),
                "command": f"python benchmarks/tasks.py --parts {part} --garments DIR {options}",
                "minutes": (time.perf_counter() - start) / 60,
                "threads": int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())),
                **figures,
            }
            result |= {"benchmark": "tasks"} | common.machine_facts(torch.device("cpu"))
            args.json.write_text(json.dumps(result, indent=1) + "\n")
            print(json.dumps(figures, indent=1), flush=True)


if __name__ == "__main__":
    main()
