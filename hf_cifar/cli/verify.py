"""`hf-cifar verify`: measure a model and compare the result with its card's claim."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hf_cifar.cli.options import new_command, quiet_libraries
from hf_cifar.cli.output import say


def add_parser(commands: Any) -> None:
    help = "Measure a model and compare the result with what its card claims."
    command = new_command(commands, "verify", help)
    command.set_defaults(run=run)
    command.add_argument(
        "model", metavar="MODEL", help="a folder or a Hub id, with @revision if wanted"
    )
    command.add_argument("--dataset", default="uoft-cs/cifar10", help="as in a recipe")
    command.add_argument(
        "--labels",
        metavar="THEIRS=OURS,...",
        help="what labels of the model mean: their names = names of the dataset's labels",
    )
    command.add_argument(
        "--out", type=Path, help="folder for the report; default: verify/ and the model's name"
    )


def run(args: argparse.Namespace) -> int:
    quiet_libraries()
    from hf_cifar.evaluation.verify import summary, verify

    result = verify(args.model, args.dataset, args.labels, args.out)
    for line in summary(result):
        say(line)
    return 1 if result.verdict == "refuted" else 0
