"""`hf-cifar plan`: what a run needs, before anything is loaded."""

from __future__ import annotations

import argparse
from typing import Any

from hf_cifar.cli.options import (
    new_recipe_command,
    positive_integer,
    positive_number,
    positive_share,
    quiet_libraries,
)
from hf_cifar.cli.output import say
from hf_cifar.recipe.load import load_recipe


def add_parser(commands: Any) -> None:
    help = "Estimate memory, work and hours of a run, before anything is loaded."
    command = new_recipe_command(commands, "plan", help)
    command.set_defaults(run=run)
    command.add_argument("--gpus", type=positive_integer, default=1, help="number of GPUs")
    command.add_argument(
        "--gpu-memory", type=positive_number, default=80.0, metavar="GB", help="memory of one GPU"
    )
    command.add_argument(
        "--peak",
        type=positive_number,
        default=989.0,
        metavar="TFLOPS",
        help="peak speed of one GPU; default: of an H100 SXM in dense bf16",
    )
    command.add_argument(
        "--mfu", type=positive_share, default=0.4, help="share of the peak that training reaches"
    )
    command.add_argument(
        "--images", type=positive_integer, help="training images; default: as many as CIFAR-10 has"
    )


def run(args: argparse.Namespace) -> None:
    recipe = load_recipe(args.recipe, args.keys)
    quiet_libraries()
    from hf_cifar.planning.memory import Hardware, plan_lines

    hardware = Hardware(args.gpus, args.gpu_memory, args.peak, args.mfu)
    for line in plan_lines(recipe, args.recipe, hardware, args.images):
        say(line)
