"""`hf-cifar adapt`: adapt a run to unlabelled images of another place."""

from __future__ import annotations

import argparse
import json
from typing import Any

from hf_cifar.cli.options import (
    new_command,
    positive_integer,
    positive_number,
    positive_share,
    quiet_libraries,
)
from hf_cifar.cli.output import say

HELP = "Adapt a run to unlabelled images of another place, as a new run."
EPILOG = """\
Only normalisation layers change. batch_norm takes the statistics of the new images (Schneider et
al. 2020); tent (Wang et al. 2021), sar (Niu et al. 2023) and eata (Niu et al. 2022) also train
scales and shifts for surer answers, of layer norms too; sar and eata leave out unsure images, and
eata holds what matters on the run's own data; coral (Sun and Saenko 2016) trains scales and shifts
to give features the mean and covariance that they have on the run's own data.

The model is kept as it was, and the command says so, where a two-sample test finds no shift, where
the images seem to be of few classes, or where the predictions collapse. What the adaptation costs
on the run's own data is always measured. Labels of the new images are used for scoring only.

--dataset takes what `hf-cifar stress` takes, and with --no-labels also a folder of pictures. Data
keys of a recipe, such as --max_eval_samples 1000, can be set as --key value."""


def add_parser(commands: Any) -> None:
    command = new_command(commands, "adapt", HELP, epilog=EPILOG)
    command.set_defaults(run=run, takes_keys=True)
    command.add_argument("model", metavar="RUN", help="the folder of a finished run")
    command.add_argument(
        "--dataset",
        help="the images to adapt to, as `dataset_name` in a recipe; default: the run's",
    )
    command.add_argument("--split", default="test", choices=("train", "validation", "test"))
    command.add_argument(
        "--adaptation",
        choices=("batch_norm", "tent", "sar", "eata", "coral"),
        default="batch_norm",
        help="default: batch_norm",
    )
    command.add_argument("--output_dir", metavar="DIR", help="default: RUN-ADAPTATION")
    command.add_argument(
        "--fresh", action="store_true", help="remove what an earlier run left in the folder"
    )
    command.add_argument(
        "--no-labels", action="store_true", help="the images have no labels, or none to be used"
    )
    command.add_argument(
        "--labels",
        metavar="THEIRS=OURS,...",
        help="what labels of the model mean: their names = names of the dataset's labels",
    )
    command.add_argument(
        "--corruption", metavar="NAME:SEVERITY", help="corrupt the images first, such as fog:5"
    )
    command.add_argument(
        "--batch_size", type=positive_integer, default=128, help="images in a batch; default: 128"
    )
    command.add_argument(
        "--learning_rate", type=positive_number, help="tent, sar, coral; default: 1e-3"
    )
    command.add_argument(
        "--epochs",
        type=positive_integer,
        default=1,
        help="passes over the images (batch_norm needs one); default: 1",
    )
    command.add_argument(
        "--prior",
        type=positive_number,
        default=16.0,
        metavar="IMAGES",
        help="batch_norm: how many images the run's own statistics count for; default: 16",
    )
    command.add_argument(
        "--source_images",
        type=positive_integer,
        default=2000,
        help="most images of the run's test split to measure on; default: 2000",
    )
    command.add_argument(
        "--max-source-loss",
        type=positive_share,
        metavar="SHARE",
        help="keep the model where its own data would lose more accuracy, such as 0.05",
    )
    command.add_argument(
        "--stream",
        action="store_true",
        help="score the model while it adapts to batches in the data's order; writes nothing",
    )
    command.add_argument(
        "--reset", action="store_true", help="with --stream: start anew at every batch"
    )
    command.add_argument("--json", action="store_true", help="write one JSON object")


def run(args: argparse.Namespace) -> None:
    quiet_libraries()
    from hf_cifar.adaptation.base import Settings
    from hf_cifar.errors import UserError
    from hf_cifar.evaluation.verify import parse_labels
    from hf_cifar.runs.adapt_run import AdaptOptions, adapt_run, parse_corruption, stream_run

    if args.reset and not args.stream:
        raise UserError("--reset: only the online form can start anew; add --stream")
    for name in ("output_dir", "fresh", "max_source_loss"):
        if args.stream and getattr(args, name):
            option = {"max_source_loss": "max-source-loss"}.get(name, name)
            raise UserError(f"--{option}: --stream writes no run; leave one of the two out")
    options = AdaptOptions(
        adaptation=args.adaptation,
        settings=Settings(args.learning_rate, args.prior, args.epochs),
        split=args.split,
        has_labels=not args.no_labels,
        labels=parse_labels(args.labels),
        corruption=parse_corruption(args.corruption),
        batch_size=args.batch_size,
        source_images=args.source_images,
        max_source_loss=args.max_source_loss,
    )
    folder = None
    if args.stream:
        facts = stream_run(args.model, args.dataset, args.keys, options, args.reset)
    else:
        outcome, folder = adapt_run(
            args.model, args.dataset, args.keys, options, args.output_dir, fresh=args.fresh
        )
        facts = outcome.facts()
    if args.json:
        say(json.dumps(facts))
        return
    say(f"{'kept as it was: ' if facts['kept'] else ''}{facts['reason']}")
    for place in ("source", "target"):
        before, after = facts[f"{place}_before"], facts[f"{place}_after"]
        if before is not None:
            then = f", then {100 * after:.2f} %" if after is not None else ""
            say(f"{place}: accuracy {100 * before:.2f} %{then}")
    if folder is not None:
        say(f"written: {folder}")
