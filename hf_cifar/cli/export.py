"""`hf-cifar export`: write a finished run as ONNX graphs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hf_cifar.cli.options import new_command, positive_number, quiet_libraries
from hf_cifar.cli.output import say
from hf_cifar.errors import HfCifarError

HELP = "Write a finished run as ONNX, for onnxruntime and transformers.js, and measure the files."
EPILOG = """\
The run's folder gets onnx/model.onnx beside its config, as transformers.js reads it. Each export
takes the place of the one before. Every graph is compared with the model on the run's test images;
one that loses too much accuracy is kept in onnx/rejected/, and the exit code is 1. Sums of 8 bits
can overflow on x86 processors without VNNI: measure on the kind of machine that will answer.

Data keys of a recipe, such as --max_eval_samples 1000 for fewer test images, can be set as
--key value. `hf-cifar push RUN --onnx` takes the graphs along."""


def add_parser(commands: Any) -> None:
    command = new_command(commands, "export", HELP, epilog=EPILOG)
    command.set_defaults(run=run, takes_keys=True)
    command.add_argument("run_folder", metavar="RUN", help="folder of a finished run")
    command.add_argument(
        "--int8",
        action="store_true",
        help="also write onnx/model_quantized.onnx: static or dynamic, whichever is quicker and"
        " keeps its accuracy",
    )
    command.add_argument("--fp16", action="store_true", help="also write onnx/model_fp16.onnx")
    command.add_argument(
        "--with-preprocessing",
        action="store_true",
        help="also write onnx/model_with_preprocessing.onnx, for uint8 pictures of any size",
    )
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="another folder; default: the run's own"
    )
    command.add_argument(
        "--max-loss",
        type=positive_number,
        default=0.5,
        metavar="POINTS",
        help="accuracy that a graph may lose on test, in points; default: 0.5",
    )
    command.add_argument("--json", action="store_true", help="write the result as one JSON object")


def run(args: argparse.Namespace) -> None:
    quiet_libraries()
    from hf_cifar.runs.export_run import ExportOptions, export_run

    options = ExportOptions(
        int8=args.int8,
        fp16=args.fp16,
        with_preprocessing=args.with_preprocessing,
        max_loss=args.max_loss,
        out=args.out,
    )
    facts = export_run(args.run_folder, args.keys, options)
    if args.json:
        say(json.dumps(facts))
    else:
        for line in table(facts):
            say(line)
        say(f"written: {args.out or args.run_folder}")
    if facts["rejected"]:
        names = ", ".join(facts["files"][kind] for kind in facts["rejected"])
        raise HfCifarError(
            f"{args.run_folder}: accuracy falls by more than {args.max_loss:g} points, so the file"
            f" is kept aside as {names}; --max-loss allows more"
        )


def table(facts: dict[str, Any]) -> list[str]:
    """Return what was measured as lines for a terminal."""
    lines = [
        f"{facts['test_images']:,} test images; speed on one thread, images/s",
        f"{'':<9}{'MB':>8}{'accuracy':>10}{'95 % interval':>18}{'same':>9}{'logits':>9}"
        f"{'batch 1':>10}{'batch 32':>10}",
    ]
    for kind, values in facts["kinds"].items():
        size = facts["bytes"].get(kind)
        rates = facts["images_per_second"][kind]
        line = f"{kind:<9}{size / 1e6:>8.1f}" if size else f"{kind:<17}"
        line += f"{100 * values['accuracy']:>10.2f}"
        interval = f"{100 * values['low']:.2f} to {100 * values['high']:.2f}"
        line += f"{interval:>18}"
        if "agreement" in values:
            line += f"{100 * values['agreement']:>8.2f}%{values['max_logit_difference']:>9.2g}"
        else:
            line += " " * 18
        lines.append(line + f"{rates['1']:>10.1f}{rates['32']:>10.1f}")
    for kind, values in facts["kinds"].items():
        if pair := values.get("paired"):
            lines.append(
                f"{kind}: {100 * pair['difference']:+.2f} points lost (95 % interval"
                f" {100 * pair['low']:.2f} to {100 * pair['high']:.2f}, McNemar's exact p ="
                f" {pair['p_value']:.2g})"
            )
    if "int8_kind" in facts:
        lines.append(f"int8 is {facts['int8_recipe']}")
    lines.append(f"opset {facts['opset']}, by {facts['exporter']}: {facts['exporter_reason']}")
    return lines
