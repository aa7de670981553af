"""`hf-cifar stress`: score a model on corrupted pictures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hf_cifar.cli.options import new_command, positive_integer, quiet_libraries
from hf_cifar.cli.output import say
from hf_cifar.errors import UserError

HELP = "Score a run or a model on corrupted pictures: noise, blur, weather, compression."
EPILOG = """\
The fifteen corruptions of Hendrycks and Dietterich (2019), and four more, are computed with the
constants of CIFAR-10-C, which were chosen for pictures of 32 pixels. Frost needs photographs that
come with the package imagecorruptions (pip install --no-deps imagecorruptions).

--dataset also takes a folder of CIFAR-10-C's .npy files, whose corruptions are then read, or one
.npy file of images with its labels beside it (CIFAR-10.1's cifar10.1_v6_data.npy). Data keys of a
recipe, such as --max_eval_samples 1000, can be set as --key value.

A run gets the result as a part of its metrics.json, its plots and its card. For another model,
stress.json and plots are written to --out."""


def add_parser(commands: Any) -> None:
    command = new_command(commands, "stress", HELP, epilog=EPILOG)
    command.set_defaults(run=run, takes_keys=True)
    command.add_argument(
        "model",
        metavar="RUN_OR_MODEL",
        help="a run folder, a model folder, or a Hub id, with @revision if wanted",
    )
    command.add_argument(
        "--dataset",
        help="as `dataset_name` in a recipe; default: the run's own, or uoft-cs/cifar10",
    )
    command.add_argument("--split", default="test", choices=("train", "validation", "test"))
    command.add_argument(
        "--severity", default="1-5", metavar="1-5", help="such as 3, 1,3,5 or 1-5; default: 1-5"
    )
    command.add_argument(
        "--corruptions",
        metavar="NAME,...",
        help="names with commas, or all for the four extra ones too; default: the fifteen",
    )
    command.add_argument(
        "--against", metavar="MODEL", help="a second model, measured on the same pictures"
    )
    command.add_argument(
        "--labels",
        metavar="THEIRS=OURS,...",
        help="what labels of the model mean: their names = names of the dataset's labels",
    )
    command.add_argument(
        "--batch_size", type=positive_integer, default=128, help="images at a time; default: 128"
    )
    command.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto: bf16 where it is faster",
    )
    command.add_argument("--out", type=Path, help="folder for stress.json and plots")
    command.add_argument("--json", action="store_true", help="write one JSON object")


def run(args: argparse.Namespace) -> None:
    quiet_libraries()
    from hf_cifar.evaluation.stress import Options, parse_corruptions, parse_severities, stress
    from hf_cifar.evaluation.verify import parse_labels
    from hf_cifar.reporting.stress_plots import write_stress_plots
    from hf_cifar.runs.additions import add_to_run, is_run

    options = Options(
        corruptions=parse_corruptions(args.corruptions),
        severities=parse_severities(args.severity),
        split=args.split,
        batch_size=args.batch_size,
        precision=args.precision,
        labels=parse_labels(args.labels),
    )
    result, pictures = stress(args.model, args.dataset, args.keys, options, args.against)

    def draw(folder: Path) -> object:
        return write_stress_plots(folder, result, pictures)

    if args.out is None and is_run(args.model):
        out = Path(args.model).expanduser()
        add_to_run(out, "stress", result, draw)
    else:
        out = args.out or Path("stress") / args.model.strip("/").replace("/", "--")
        write_result(out, "stress.json", result, draw)
    if args.json:
        say(json.dumps(result))
        return
    for line in table(result):
        say(line)
    say(f"written: {out}")


def write_result(folder: Path, name: str, result: dict[str, Any], draw: Any) -> None:
    """Write a result as JSON, and its plots. Raises UserError where the folder can't be written."""
    from hf_cifar.files import write_json

    try:
        folder.mkdir(parents=True, exist_ok=True)
        draw(folder)
        write_json(folder / name, result)
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}); name another folder with --out"
        ) from None


def table(result: dict[str, Any]) -> list[str]:
    """Return the accuracies in percent as lines for a terminal."""
    severities = list(next(iter(result["corruptions"].values())))
    lines = []
    if result["clean"] is not None:
        lines.append(f"{'clean':<20}{100 * result['clean']:7.2f}")
    lines.append(f"{'severity':<20}" + "".join(f"{severity:>7}" for severity in severities))
    for name, by_severity in result["corruptions"].items():
        lines.append(f"{name:<20}" + "".join(f"{100 * a:7.2f}" for a in by_severity.values()))
    for name, reason in result["left_out"].items():
        lines.append(f"{name}: left out: {reason}")
    lines.append(f"mean error {100 * result['mean_error']:.2f} %, {result['images']:,} images each")
    if (other := result.get("against")) is not None:
        line = f"against {other['model']}: its mean error {100 * other['mean_error']:.2f} %"
        if other["relative_mean_error"] is not None:
            line += f", relative mean corruption error {100 * other['relative_mean_error']:.1f} %"
        lines.append(line)
    return lines
