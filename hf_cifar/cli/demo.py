"""`hf-cifar demo`: a page in the browser that classifies pictures."""

from __future__ import annotations

import argparse
import contextlib
import os
from typing import Any

from hf_cifar.cli.options import new_command, positive_integer, quiet_libraries
from hf_cifar.cli.output import say
from hf_cifar.errors import UserError


def add_parser(commands: Any) -> None:
    help = "Show a page in the browser that classifies pictures with a run."
    command = new_command(
        commands,
        "demo",
        help,
        epilog="The page answers this machine only. It keeps and logs no picture, and calls no\n"
        "other machine. It needs the extra `demo`: pip install 'hf-cifar[demo]'",
    )
    command.set_defaults(run=run)
    command.add_argument("run_folder", metavar="RUN", help="folder of a finished run")
    command.add_argument(
        "--port", type=positive_integer, default=7860, help="of the page; default: 7860"
    )


def run(args: argparse.Namespace) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported
    quiet_libraries()
    from hf_cifar.demo.local import HOST, check_demo_extra, listen, private_folder
    from hf_cifar.runs.additions import is_run

    check_demo_extra("demo")
    if not is_run(args.run_folder):
        raise UserError(f"{args.run_folder}: it is no folder of a finished run; name one")
    with listen(args.port) as listening, private_folder() as folder:
        from hf_cifar.demo.serve import make_server

        server = make_server(args.run_folder, folder)
        say(f"http://{HOST}:{args.port} shows {args.run_folder}; Ctrl-C ends it")
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
    say("ended")
