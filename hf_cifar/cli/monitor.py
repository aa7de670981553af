"""`hf-cifar monitor`: whether new pictures look like those that a run was validated on."""

from __future__ import annotations

import argparse
import json
from typing import Any

from hf_cifar.cli.options import new_command, positive_share, quiet_libraries
from hf_cifar.cli.output import say

DRIFT = 3  # exit code


def add_parser(commands: Any) -> None:
    help = "Compare new pictures with those that a run was validated on; exit code 3 on drift."
    command = new_command(commands, "monitor", help)
    command.set_defaults(run=run)
    command.add_argument("run_folder", metavar="RUN", help="folder of a finished run")
    command.add_argument("pictures", metavar="FOLDER", help="new pictures, in it and below")
    command.add_argument(
        "--p",
        type=positive_share,
        default=0.01,
        help="p-value below which pictures have drifted; default: 0.01",
    )
    command.add_argument("--json", action="store_true", help="write the result as one JSON object")


def run(args: argparse.Namespace) -> int:
    quiet_libraries()
    from hf_cifar.evaluation.monitor import monitor

    result = monitor(args.run_folder, args.pictures, args.p)
    if args.json:
        say(json.dumps(result))
        return DRIFT if result["drift"] else 0
    verdict = "drift" if result["drift"] else "no drift"
    say(f"{verdict}: p-value {result['p_value']:.3g} of {result['pictures']} pictures")
    say(
        f"estimated accuracy {result['estimated_accuracy']:.4f}"
        f" ({result['validation_accuracy']:.4f} on validation), or"
        f" {result['estimated_accuracy_other_mix']:.4f} if the classes don't come as often as there"
    )
    if result["strangers"] is not None:
        say(f"strangers {result['strangers']:.1%}")
        for worst in result["worst"]:
            say(f"  {worst['strangeness']:.3f}  {worst['picture']}")
    return DRIFT if result["drift"] else 0
