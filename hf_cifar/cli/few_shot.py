"""`hf-cifar few-shot`: how far a frozen backbone gets with a few labels a class."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hf_cifar.cli.options import (
    new_backbone_command,
    positive_integer,
    positive_integers,
    quiet_libraries,
)
from hf_cifar.cli.output import say
from hf_cifar.errors import UserError

SHOTS = "1,2,5,10,20,50"


def add_parser(commands: Any) -> None:
    help = "Measure how far a frozen backbone gets with a few labels of each class."
    command = new_backbone_command(commands, "few-shot", help)
    command.set_defaults(run=run)
    command.add_argument(
        "--shots",
        type=positive_integers,
        default=SHOTS,
        metavar="N,...",
        help=f"labelled images of each class; default: {SHOTS}",
    )
    command.add_argument(
        "--draws",
        type=positive_integer,
        default=10,
        help="times that labelled images are drawn; default: 10",
    )
    command.add_argument(
        "--unlabelled",
        action="store_true",
        help="refine on the rest of the training images, without their labels, where that helps",
    )
    command.add_argument(
        "--lora",
        action="store_true",
        help="also train LoRA adapters for 40 steps on each draw of 10 images a class or more,"
        " which takes minutes for each",
    )
    command.add_argument(
        "--out",
        type=Path,
        help="folder for table and plot; default: runs/NAME-few-shot for a backbone called NAME",
    )
    command.add_argument(
        "--save",
        type=positive_integer,
        metavar="K",
        help="also leave a run folder with the best head of K images a class, at output_dir;"
        " default: runs/NAME-K-shot",
    )
    command.add_argument("--json", action="store_true", help="write the results as one JSON object")


def run(args: argparse.Namespace) -> None:
    quiet_libraries()
    from hf_cifar.evaluation.backbone_recipe import backbone_recipe
    from hf_cifar.evaluation.few_shot import few_shot, load_few_shot_data
    from hf_cifar.reporting.few_shot_plot import write_few_shot
    from hf_cifar.runs.few_shot_lora import check_lora_shots, lora_results
    from hf_cifar.runs.few_shot_run import save_few_shot_run

    recipe = backbone_recipe(args.backbone, args.keys)
    if args.lora:
        check_lora_shots(args.shots)
    most = [*args.shots, *([args.save] if args.save else [])]
    study = load_few_shot_data(recipe, most, args.unlabelled)
    result = few_shot(study, args.shots, args.draws)
    if args.lora:
        result["results"] += lora_results(study, args.shots, args.draws)
        result["results"].sort(key=lambda row: (row["shots"], row["method"]))
    folder = args.out or Path("runs") / f"{recipe.name.replace('/', '-')}-few-shot"
    try:
        write_few_shot(result, folder)
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror}; name another folder") from None
    if args.save:
        saved = save_few_shot_run(study, args.save, result, args.backbone, args.keys)
        result["run"] = str(saved)
    if args.json:
        say(json.dumps(result))
        return
    say(f"{'shots':>6}  {'method':<10}{'accuracy':>9}  95 % interval over {args.draws} draws")
    for row in result["results"]:
        interval = "" if row["low"] is None else f"{row['low']:.4f} to {row['high']:.4f}"
        say(f"{row['shots']:>6}  {row['method']:<10}{row['mean']:>9.4f}  {interval}")
    say(f"table and plot: {folder}")
    if args.save:
        say(f"run with the head of {args.save} images a class: {result['run']}")
