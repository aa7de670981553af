"""`hf-cifar label`: which pictures without labels to label first."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hf_cifar.cli.options import new_command, positive_integer, quiet_libraries
from hf_cifar.cli.output import say
from hf_cifar.errors import UserError


def add_parser(commands: Any) -> None:
    help = "Choose the pictures to label first, and write a table that `train` reads back."
    command = new_command(
        commands,
        "label",
        help,
        epilog="Pictures are chosen by BADGE (Ash et al. 2020): least certain, and different from"
        " each\nother. They are added to FOLDER/labels.csv with the model's suggestions. Fill in"
        " its\ncolumn `label`, then `hf-cifar train RECIPE --dataset_name FOLDER` trains on the"
        " rows\nthat have one. Further calls add further pictures and change no line.",
    )
    command.set_defaults(run=run)
    command.add_argument("folder", metavar="FOLDER", help="pictures, in it and below")
    command.add_argument(
        "--model",
        required=True,
        metavar="RUN_OR_MODEL",
        help="what is uncertain about them: a run folder, a model folder, or a Hub id",
    )
    command.add_argument(
        "--count", type=positive_integer, default=100, help="pictures to choose; default: 100"
    )
    command.add_argument(
        "--out",
        type=Path,
        help="folder for the contact sheets; default: runs/NAME-label for a folder called NAME",
    )
    command.add_argument(
        "--prefill",
        action="store_true",
        help="write the suggestions into the column `label` too, so that only wrong ones need a"
        " change",
    )
    command.add_argument(
        "--seed",
        type=positive_integer,
        default=1,
        help="of the random choice among them; default: 1",
    )
    command.add_argument("--json", action="store_true", help="write the result as one JSON object")


def run(args: argparse.Namespace) -> None:
    quiet_libraries()
    from hf_cifar.evaluation.label_order import order_pictures
    from hf_cifar.reporting.label_sheets import write_label_sheets

    pictures = Path(args.folder).expanduser().resolve()
    folder = args.out or Path("runs") / f"{pictures.name}-label"
    if folder.resolve().is_relative_to(pictures):
        raise UserError(
            f"--out {folder}: contact sheets would lie among the pictures of {args.folder}; name"
            " another folder"
        )
    order = order_pictures(args.model, args.folder, args.count, args.seed)
    try:
        sheets = write_label_sheets(order, folder)
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror}; name another folder") from None
    rows = order.table_rows(args.prefill)
    order.table.append(rows)
    waiting = order.table.unlabelled + (0 if args.prefill else len(rows))
    if args.json:
        result = {
            "labels": str(order.table.path),
            "sheets": [str(sheet) for sheet in sheets],
            "pictures": [
                {"file_name": file, "suggested": suggested, "confidence": confidence}
                for file, suggested, confidence in zip(
                    order.files, order.suggested, order.confidence, strict=True
                )
            ],
            "candidates": order.candidates,
            "unlabelled": waiting,
        }
        say(json.dumps(result))
        return
    say(f"{len(rows):,} of {order.candidates:,} pictures to label first")
    say(f"contact sheets: {', '.join(map(str, sheets))}")
    say(f"fill in the column label ({waiting:,} rows without one): {order.table.path}")
    say(f"then: hf-cifar train RECIPE --dataset_name {args.folder}")
