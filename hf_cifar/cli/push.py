"""`hf-cifar push`: put a finished run on the Hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hf_cifar.cli.options import new_command, quiet_libraries
from hf_cifar.cli.output import say
from hf_cifar.errors import UserError


def add_parser(commands: Any) -> None:
    command = new_command(commands, "push", "Put a finished run on the Hub.")
    command.set_defaults(run=run)
    command.add_argument("run_folder", metavar="RUN", type=Path, help="folder of a finished run")
    command.add_argument("--to", metavar="USER/NAME", help="model repo on the Hub")
    command.add_argument(
        "--space",
        metavar="USER/NAME",
        help="a Space on the Hub: the page of `hf-cifar demo` with the model, for everybody",
    )
    command.add_argument(
        "--private", action="store_true", help="create the repo as a private one, if it is missing"
    )
    command.add_argument("--revision", help="branch to commit to, created if it is missing")
    command.add_argument(
        "--dry-run",
        nargs="?",
        type=Path,
        const=True,
        default=False,
        metavar="DIR",
        help="only list the files that would be pushed; for a Space, DIR writes them there without"
        " the Hub, and `python app.py` runs them",
    )
    command.add_argument(
        "--no-check", action="store_true", help="don't download and compare after the push"
    )
    command.add_argument(
        "--onnx", action="store_true", help="take the files of `hf-cifar export` along"
    )


def run(args: argparse.Namespace) -> None:
    if args.to is None and args.space is None:
        raise UserError(
            "push: required: --to or --space; `hf-cifar push --help` shows how to call it"
        )
    folder = args.dry_run if isinstance(args.dry_run, Path) else None
    if folder is not None and (args.space is None or args.to is not None):
        raise UserError(f"push: --dry-run {folder}: a folder is written for --space alone")
    if args.onnx and args.to is None:
        raise UserError("push: --onnx goes with --to USER/NAME; add that")
    quiet_libraries()
    from hf_cifar.hub.upload import PushOptions

    options = PushOptions(
        private=args.private,
        revision=args.revision,
        dry_run=bool(args.dry_run),
        check=not args.no_check,
        say=say,
    )
    if args.space is not None:
        from hf_cifar.demo.local import check_demo_extra

        check_demo_extra("push --space")
    if args.to is not None:
        from hf_cifar.hub.push import push

        push(args.run_folder, args.to, options, onnx=args.onnx)
    if args.space is not None:
        from hf_cifar.hub.space import push_space, write_space

        if folder is None:
            push_space(args.run_folder, args.space, options)
            return
        write_space(args.run_folder, args.space, folder)
        say(f"{folder}: pip install -r requirements.txt, then python app.py")
