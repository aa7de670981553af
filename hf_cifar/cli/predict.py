"""`hf-cifar predict`: classify pictures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hf_cifar.cli.options import new_command, positive_integer, quiet_libraries
from hf_cifar.cli.output import say
from hf_cifar.distributed import rank
from hf_cifar.errors import UserError
from hf_cifar.text import visible

BULK_OPTIONS = ("split", "batch_size", "precision", "on_bad_image")


def add_parser(commands: Any) -> None:
    command = new_command(
        commands,
        "predict",
        "Classify pictures.",
        epilog="Without --out, answers are printed in order as pictures are read, and a picture\n"
        "that can't be read ends the command with exit code 2 after the answers before it.\n"
        "With --out, it is listed in the file with its error. A stopped command goes on where\n"
        "it was; `accelerate launch -m hf_cifar predict ... --out FILE` shares the pictures\n"
        "between processes.",
    )
    command.set_defaults(run=run)
    command.add_argument(
        "model",
        metavar="RUN_OR_MODEL",
        help="a run folder, a model folder, or a Hub id, with @revision if wanted",
    )
    command.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="files, folders or URLs; with --out also one data set, as `dataset_name` in a recipe",
    )
    command.add_argument(
        "--top", type=positive_integer, default=3, help="classes named for each picture; default: 3"
    )
    command.add_argument(
        "--json",
        action="store_true",
        help="write one JSON object a picture; with --out, one that counts the answers",
    )
    command.add_argument(
        "--explain",
        type=Path,
        metavar="DIR",
        help="write a PNG for each picture into this folder: what the model saw of it, and a heat"
        " map (Grad-CAM) of what its best class rests on; needs the extra `demo`",
    )
    bulk = command.add_argument_group("many pictures")
    bulk.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the answers to this parquet file, in batches; for a model of several tasks with"
        " columns for each, such as label_TASK",
    )
    bulk.add_argument(
        "--split",
        choices=("train", "validation", "test"),
        help="of a data set; default: test, or train where there is no test",
    )
    bulk.add_argument(
        "--batch_size",
        type=positive_integer,
        help="pictures at a time; default: 128, on a CPU 32, or 8 where fp32 needs that",
    )
    bulk.add_argument(
        "--precision",
        choices=("fp32", "bf16", "auto"),
        help="fp32, the default, gives the answers of single pictures to 1e-6; auto: what is"
        " fastest here, as `evaluate` chooses it",
    )
    bulk.add_argument(
        "--on_bad_image",
        choices=("skip", "error"),
        help="skip, the default: list a picture that can't be read with its error, and go on;"
        " error: end there. In a recipe it is the other way round: training ends by default",
    )


def run(args: argparse.Namespace) -> None:
    bulk = {name: getattr(args, name) for name in BULK_OPTIONS if getattr(args, name) is not None}
    if bulk and args.out is None:
        raise UserError(f"predict: --{next(iter(bulk))} goes with --out FILE; add that")
    if args.explain is not None and args.out is not None:
        raise UserError("predict: --explain goes with single pictures; leave --out out")
    quiet_libraries()
    if args.out is not None:
        _run_bulk(args, bulk)
        return
    from hf_cifar.evaluation.predict import predict

    explain = None
    if args.explain is not None:
        from hf_cifar.reporting.heat_map_sheets import HeatMapSheets

        explain = HeatMapSheets(args.explain).write
    for name, answers in predict(args.model, args.images, args.top, explain):
        if args.json:
            key = "tasks" if isinstance(answers, dict) else "labels"
            say(json.dumps({"image": name, key: answers}))
            continue
        by_task = answers if isinstance(answers, dict) else {"": answers}
        for task, labels in by_task.items():
            scores = [f"{visible(answer['label'])} {answer['score']:.3f}" for answer in labels]
            title = f"{visible(task):<16}" if task else ""
            say(f"{visible(name):<39} {title}{'  '.join(scores)}")


def _run_bulk(args: argparse.Namespace, options: dict[str, Any]) -> None:
    from hf_cifar.evaluation.bulk_predict import bulk_predict

    out = args.out.expanduser()
    counts = bulk_predict(args.model, args.images, out, top=args.top, **options)
    if rank():
        return
    if args.json:
        say(json.dumps({"out": str(out)} | counts))
        return
    text = f"{out}: {counts['pictures']:,} pictures"
    if counts["none_of_these"]:
        text += f", {counts['none_of_these']:,} of them none of the classes"
    if counts["errors"]:
        text += f", {counts['errors']:,} without an answer (column `error` says why)"
    say(text)
