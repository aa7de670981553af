"""`hf-cifar calibrate`: let a finished run say "none of these"."""

from __future__ import annotations

import argparse
import json
from typing import Any

from hf_cifar.cli.options import new_command, positive_share, quiet_libraries
from hf_cifar.cli.output import say


def add_parser(commands: Any) -> None:
    help = 'Let a finished run say "none of these" to pictures of other things.'
    command = new_command(commands, "calibrate", help)
    command.set_defaults(run=run)
    command.add_argument("run_folder", metavar="RUN", help="folder of a finished run")
    command.add_argument(
        "--reject",
        type=positive_share,
        default=0.05,
        metavar="SHARE",
        help="share of validation pictures that are taken for strangers; default: 0.05",
    )
    command.add_argument("--json", action="store_true", help="write the result as one JSON object")


def run(args: argparse.Namespace) -> None:
    quiet_libraries()
    from hf_cifar.runs.calibrate_run import calibrate

    facts = calibrate(args.run_folder, args.reject)
    if args.json:
        say(json.dumps(facts))
        return
    say("AUROC when each class in turn is the stranger")
    for name, auroc in facts["aurocs"].items():
        say(f"  {name:<14}{auroc:.4f}")
    say(
        f"{args.run_folder} rejects pictures whose {facts['score']} score is below"
        f" {facts['threshold']:.4g}: {facts['share']:.1%} of validation"
    )
