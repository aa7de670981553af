"""`hf-cifar compare`: which backbone and method to take, or which of some runs is better."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from hf_cifar.cli.options import (
    keys_help,
    new_command,
    positive_number,
    quiet_libraries,
)
from hf_cifar.cli.output import say
from hf_cifar.errors import UserError

HELP = "Race backbones and methods by short fine-tunings, or compare finished runs."
METHODS = "linear,lora,full"
MINUTES = 12.0
UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
RACE = """\
Backbones: every one is fine-tuned with every method, the better half for longer, and so on, until
one is left after --minutes. Scores are on validation images. A recipe is taken as it is for its
own method. compare.json, a plot and winner.yaml, which `hf-cifar train` takes, go to --out. Limits
are for the trained model on this machine, with one image at a time; images/s in the best batch.

Finished runs: when every name is a run folder, their predictions.parquet are compared by McNemar's
exact test and a bootstrap interval of the difference.

"""


def add_parser(commands: Any) -> None:
    command = new_command(commands, "compare", HELP, epilog=RACE + keys_help())
    command.set_defaults(run=run, takes_keys=True)
    command.add_argument(
        "models",
        metavar="BACKBONE_OR_RECIPE",
        nargs="+",
        help="a model folder, a Hub id, a `pypi:` package or a recipe; or run folders only",
    )
    command.add_argument(
        "--methods", metavar="NAME,...", help=f"ways to fine-tune; default: {METHODS}"
    )
    command.add_argument(
        "--max-parameters", type=quantity, metavar="N", help="such as 25000000 or 25M"
    )
    command.add_argument(
        "--max-memory", type=quantity, metavar="BYTES", help="such as 500000000, 500MB or 2GB"
    )
    command.add_argument("--max-milliseconds", type=positive_number, metavar="MS")
    command.add_argument("--min-images-per-second", type=positive_number, metavar="N")
    command.add_argument(
        "--minutes", type=positive_number, help=f"for the whole race; default: {MINUTES:g}"
    )
    command.add_argument(
        "--out",
        type=Path,
        help="folder for compare.json, plot and winner.yaml; default: runs/compare for a race, none"
        " for finished runs",
    )
    command.add_argument("--json", action="store_true", help="write the result as one JSON object")


def quantity(text: str) -> float:
    """Return the number above 0 that an option was given, with a unit such as M or GB if wanted."""
    match = re.fullmatch(r"([0-9.eE+-]+) ?([KMG]I?)?B?", text.strip().upper())
    number = text if match is None else match[1]
    return positive_number(number) * UNITS[(match[2] or "") if match else ""]


def run(args: argparse.Namespace) -> None:
    quiet_libraries()
    from hf_cifar.runs.additions import is_run

    runs = [model for model in args.models if is_run(model)]
    if runs and len(runs) < len(args.models):
        other = next(model for model in args.models if model not in runs)
        raise UserError(
            f"compare: {runs[0]} is a finished run and {other} is none; name only runs, or only"
            " backbones and recipes"
        )
    if runs:
        compare_finished(args)
    else:
        race(args)


def compare_finished(args: argparse.Namespace) -> None:
    from hf_cifar.evaluation.paired_test import compare_runs
    from hf_cifar.files import write_json

    if unused := _race_options(args):
        raise UserError(f"compare: {unused[0]} is for a race of backbones; leave it out for runs")
    if len(set(args.models)) < max(2, len(args.models)):
        raise UserError("compare: name two or more different runs")
    result = compare_runs(args.models)
    if args.out is not None:
        _write(args.out, lambda: write_json(args.out / "compare.json", result))
    if args.json:
        say(json.dumps(result))
        return
    for line in runs_table(result):
        say(line)


def _race_options(args: argparse.Namespace) -> list[str]:
    """Return the options of a race that were given, as they are typed."""
    names = ["methods", "max_parameters", "max_memory", "max_milliseconds"]
    names += ["min_images_per_second", "minutes"]
    options = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]
    return options + [f"--{name}" for name in args.keys]


def race(args: argparse.Namespace) -> None:
    from hf_cifar.files import write_text
    from hf_cifar.planning.compare import compare
    from hf_cifar.planning.race_limits import Limits
    from hf_cifar.reporting.compare_plot import write_comparison

    limits = Limits(
        args.max_parameters, args.max_memory, args.max_milliseconds, args.min_images_per_second
    )
    methods = [word.strip() for word in (args.methods or METHODS).split(",")]
    folder = args.out or Path("runs") / "compare"
    _write(folder, lambda: None)  # an hour's race must not end with a folder that can't be written
    result, recipe = compare(args.models, methods, args.keys, limits, args.minutes or MINUTES)
    result["choice"]["recipe"] = str(folder / "winner.yaml")

    def write() -> None:
        write_comparison(result, folder)
        write_text(folder / "winner.yaml", recipe)

    _write(folder, write)
    if args.json:
        say(json.dumps(result))
        return
    for line in race_table(result):
        say(line)
    say(f"table and plot: {folder}")
    say(f"to train it: hf-cifar train {folder / 'winner.yaml'}")


def _write(folder: Path, write: Any) -> None:
    """Make the folder and write into it. Raises UserError where that can't be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write()
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror}; name another folder") from None


def race_table(result: dict[str, Any]) -> list[str]:
    """Return the result of a race as lines for a terminal."""
    rows = result["candidates"]
    width = max(len(row["model"]) for row in rows) + 2
    lines = [
        f"accuracy on {result['validation_images']:,} validation images of {result['data']}:",
        f"{'model':<{width}}{'method':<9}{'rounds':>6}{'steps':>8}{'accuracy':>10}{'kNN':>8}"
        f"{'probe':>8}{'moved':>7}{'rank':>7}{'M par.':>9}{'GFLOPs':>8}{'ms':>8}{'images/s':>10}"
        f"{'MB':>8}",
    ]
    for row in rows:
        accuracy = "diverged" if row["accuracy"] is None else f"{row['accuracy']:.4f}"
        steps = "-" if row["steps"] is None else f"{row['steps']:,}"
        lines.append(
            f"{row['model']:<{width}}{row['method']:<9}{row['rounds']:>6}{steps:>8}{accuracy:>10}"
            f"{row['knn_accuracy']:>8.4f}{row['probe_accuracy']:>8.4f}"
            f"{row['feature_distance']:>7.3f}{row['effective_rank']:>7.1f}"
            f"{row['parameters'] / 1e6:>9.2f}{row['flops'] / 1e9:>8.2f}{row['milliseconds']:>8.1f}"
            f"{row['images_per_second']:>10.1f}{row['memory_bytes'] / 1e6:>8.1f}"
        )
    lines += [
        "accuracy: after the last round. kNN, probe: of frozen features. moved: 1 - CKA to the"
        " frozen features. rank: effective.",
        "ms, MB: with one image. images/s: in the best batch.",
    ]
    lines += [f"{row['model']}: took no part: {row['missed']}" for row in result["removed"]]
    lines += [f"warning: {warning}" for warning in result["warnings"]]
    lines += crossing_lines(rows)
    frozen = result["frozen_choice"]
    lines.append(
        f"frozen features alone would have chosen {frozen['model']}"
        f" (probe {frozen['probe_accuracy']:.4f}), which came in place {frozen['place']} with"
        f" {frozen['best_method']}"
    )
    return [*lines, result["choice"]["reason"]]


def crossing_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line for each candidate whose curve may yet cross the winner's."""
    lines = []
    for row in rows:
        if not row["may_cross"]:
            continue
        name, behind = f"{row['model']} with {row['method']}", row["behind"]
        gap = (
            f"{100 * behind['difference']:.1f} points behind after round {row['rounds']} (95 %"
            f" interval {100 * behind['low']:.1f} to {100 * behind['high']:.1f})"
        )
        if row["crosses_at"] is None:
            lines.append(f"{name} may yet catch up: {gap}")
        else:
            times = f"{row['crosses_at']:.1f} times as long"
            lines.append(
                f"{name} may yet catch up: {gap}, level in runs {times} at its present rise"
            )
    return lines


def runs_table(result: dict[str, Any]) -> list[str]:
    """Return the comparison of finished runs as lines for a terminal."""
    width = max(len(row["run"]) for row in result["runs"]) + 2
    lines = [f"{'run':<{width}}{'accuracy':>9}  95 % interval"]
    for row in result["runs"]:
        interval = f"{row['low']:.4f} to {row['high']:.4f}"
        lines.append(f"{row['run']:<{width}}{row['accuracy']:>9.4f}  {interval}")
    for pair in result["pairs"]:
        lines.append(
            f"{pair['first']} less {pair['second']}: {100 * pair['difference']:+.2f} points"
            f" ({100 * pair['low']:+.2f} to {100 * pair['high']:+.2f}), right alone"
            f" {pair['only_first_right']} and {pair['only_second_right']}, p"
            f" {pair['p_value']:.3g}"
        )
    return [*lines, result["sentence"]]
