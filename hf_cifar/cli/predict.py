"""`hf-cifar predict`: classify pictures."""

from __future__ import annotations

import argparse
import json
from typing import Any

from hf_cifar.cli.options import new_command, positive_integer, quiet_libraries
from hf_cifar.cli.output import say
from hf_cifar.text import visible


def add_parser(commands: Any) -> None:
    command = new_command(commands, "predict", "Classify pictures.")
    command.set_defaults(run=run)
    command.add_argument(
        "model",
        metavar="RUN_OR_MODEL",
        help="a run folder, a model folder, or a Hub id, with @revision if wanted",
    )
    command.add_argument("images", metavar="IMAGE", nargs="+", help="files, folders or URLs")
    command.add_argument(
        "--top", type=positive_integer, default=3, help="classes named for each picture; default: 3"
    )
    command.add_argument("--json", action="store_true", help="write one JSON object a picture")


def run(args: argparse.Namespace) -> None:
    quiet_libraries()
    from hf_cifar.evaluation.predict import predict

    for name, answers in predict(args.model, args.images, args.top):
        if args.json:
            say(json.dumps({"image": name, "labels": answers}))
        else:
            scores = [f"{visible(answer['label'])} {answer['score']:.3f}" for answer in answers]
            say(f"{visible(name):<40}{'  '.join(scores)}")
