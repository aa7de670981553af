"""`hf-cifar evaluate`: score a run or a model on a split."""

from __future__ import annotations

import argparse
import json
from typing import Any

from hf_cifar.cli.options import new_command, positive_integer, quiet_libraries
from hf_cifar.cli.output import say
from hf_cifar.text import visible

PER_LABEL = ("average_precision", "auroc", "f1")  # figures of a model that gives several labels


def add_parser(commands: Any) -> None:
    command = new_command(commands, "evaluate", "Score a run or a model on a split.")
    command.set_defaults(run=run)
    command.add_argument(
        "model",
        metavar="RUN_OR_MODEL",
        help="a run folder, a model folder, or a Hub id, with @revision if wanted",
    )
    command.add_argument(
        "--dataset",
        help="as `dataset_name` in a recipe; default: the run's own, or uoft-cs/cifar10",
    )
    command.add_argument("--split", default="test", choices=("train", "validation", "test"))
    command.add_argument(
        "--batch_size", type=positive_integer, default=128, help="images at a time; default: 128"
    )
    command.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto: bf16 where it is faster",
    )
    command.add_argument(
        "--tta",
        choices=("none", "flip"),
        default="none",
        help="flip: average the answers to each image and its mirror image",
    )
    command.add_argument(
        "--strangers",
        metavar="DATASET",
        help="instead of accuracy, measure how well scores tell the test pictures from these, a"
        " folder of pictures or a data set without any of the model's classes",
    )
    command.add_argument("--json", action="store_true", help="write metrics as one JSON object")


def run(args: argparse.Namespace) -> None:
    quiet_libraries()
    if args.strangers:
        _run_strangers(args)
        return
    from hf_cifar.evaluation.evaluate import evaluate

    metrics = evaluate(
        args.model, args.dataset, args.split, args.batch_size, args.precision, args.tta
    )
    if args.json:
        say(json.dumps(metrics))
        return
    low, high = metrics[f"{args.split}_accuracy_ci95"]
    accuracy = metrics[f"{args.split}_accuracy"]
    say(f"{args.split} accuracy {accuracy:.4f} (95 % interval {low:.4f} to {high:.4f})")
    for name, value in metrics.items():
        if isinstance(value, float) and name != f"{args.split}_accuracy":
            ends = metrics.get(f"{name}_ci95")
            interval = f"  (95 % interval {ends[0]:.4f} to {ends[1]:.4f})" if ends else ""
            say(f"{name:<32}{value:.4f}{interval}")
    if point := metrics.get("operating_point"):
        say(
            f"Sensitivity and specificity are those of {visible(point['positive_class'])} from a"
            f" probability of {point['threshold']:.4f} on, which was chosen on validation."
        )
    for label, value in metrics.get(f"{args.split}_per_class_accuracy", {}).items():
        say(f"  {visible(label):<30}{value:.4f}")
    for label, scores in metrics.get(f"{args.split}_per_label", {}).items():
        texts = [f"{name} {scores[name]:.4f}" for name in PER_LABEL if name in scores]
        say(f"  {visible(label):<30}{'  '.join(texts)}")


def _run_strangers(args: argparse.Namespace) -> None:
    from hf_cifar.evaluation.strangers import evaluate_strangers

    result = evaluate_strangers(args.model, args.dataset, args.strangers)
    if args.json:
        say(json.dumps(result))
        return
    say(f"{result['known_images']:,} test pictures, {result['stranger_images']:,} strangers")
    say(f"{'score':<14}{'AUROC':>8}  strangers accepted with 95 % of the known")
    for name, values in result["scores"].items():
        say(f"{name:<14}{values['auroc']:>8.4f}  {values['fpr95']:.1%}")
