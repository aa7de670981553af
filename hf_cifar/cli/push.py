"""`hf-cifar push`: put a finished run on the Hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hf_cifar.cli.options import new_command, quiet_libraries
from hf_cifar.cli.output import say


def add_parser(commands: Any) -> None:
    command = new_command(commands, "push", "Put a finished run on the Hub.")
    command.set_defaults(run=run)
    command.add_argument("run_folder", metavar="RUN", type=Path, help="folder of a finished run")
    command.add_argument("--to", required=True, metavar="USER/NAME", help="model repo on the Hub")
    command.add_argument(
        "--private", action="store_true", help="create the repo as a private one, if it is missing"
    )
    command.add_argument("--revision", help="branch to commit to, created if it is missing")
    command.add_argument(
        "--dry-run", action="store_true", help="only list the files that would be pushed"
    )
    command.add_argument(
        "--no-check", action="store_true", help="don't download and compare after the push"
    )
    command.add_argument(
        "--onnx", action="store_true", help="take the files of `hf-cifar export` along"
    )


def run(args: argparse.Namespace) -> None:
    quiet_libraries()
    from hf_cifar.hub.push import push

    push(
        args.run_folder,
        args.to,
        private=args.private,
        revision=args.revision,
        dry_run=args.dry_run,
        check=not args.no_check,
        onnx=args.onnx,
        say=say,
    )
