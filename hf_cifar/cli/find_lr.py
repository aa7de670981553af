"""`hf-cifar find-lr`: look for a learning rate."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hf_cifar.cli.options import (
    new_recipe_command,
    positive_integer,
    positive_number,
    quiet_libraries,
)
from hf_cifar.cli.output import say
from hf_cifar.recipe.load import load_recipe

ROWS = 20  # of the table, about


def add_parser(commands: Any) -> None:
    help = "Look for a learning rate: train a few steps while it grows."
    command = new_recipe_command(commands, "find-lr", help)
    command.set_defaults(run=run)
    command.add_argument("--start", type=positive_number, default=1e-6, help="first learning rate")
    command.add_argument(
        "--end",
        type=positive_number,
        default=1.0,
        help="last learning rate; the search ends earlier if the loss breaks away",
    )
    command.add_argument(
        "--steps", type=positive_integer, default=100, help="most optimizer steps to train"
    )
    command.add_argument(
        "--out",
        type=Path,
        help="folder for table and plot; default: runs/NAME-find-lr for a recipe called NAME",
    )


def run(args: argparse.Namespace) -> None:
    recipe = load_recipe(args.recipe, args.keys)
    folder = args.out or recipe.output_dir.with_name(f"{recipe.output_dir.name}-find-lr")
    quiet_libraries()
    from hf_cifar.planning.learning_rate import range_test, write

    result = range_test(recipe, start=args.start, end=args.end, steps=args.steps)
    write(result, folder)
    say(f"{'learning rate':>14}{'loss':>10}{'smoothed':>10}")
    rows = list(zip(result.rates, result.losses, result.smoothed, strict=True))
    for rate, loss, smoothed in rows[:: max(1, len(rows) // ROWS)]:
        say(f"{rate:>14.2e}{loss:>10.4f}{smoothed:>10.4f}")
    say(
        f"the loss falls fastest at {result.steepest:.2g};"
        f" a tenth of the rate with the lowest loss is {result.tenth_of_least:.2g}"
    )
    say(f"to use it: hf-cifar train {args.recipe} --learning_rate {result.steepest:.2g}")
    say(f"table and plot: {folder}")
