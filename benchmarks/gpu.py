"""Measure on one GPU, in at most 35 minutes, what can't be measured without one.

Each part is a process of its own with a time limit, and writes a JSON file when it is done. A
second start goes on with the parts that are missing. At the end the table in README.md is written
anew. `--tiny` shows on any machine, with the smallest sizes, that all parts run; its figures mean
nothing and go to a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
from gpu_parts import PARTS, print_digest, print_planned

README = common.HERE / "README.md"
BEGIN, END = "<!-- figures of a GPU: begin -->", "<!-- figures of a GPU: end -->"


def read(path: Path) -> dict[str, Any]:
    """Return what a part has written, or nothing."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def table(folder: Path) -> str:
    """Return the Markdown table of what the parts in `folder` have written."""
    lines = ["| what | measured | goal | |", "|---|---|---|---|"]
    devices = []
    for name, part in PARTS.items():
        results = read(folder / f"{name}.json")
        figures = results.get("figures", {})
        devices.append(results.get("hardware", {}).get("device"))
        for what, goal in part.goals.items():
            figure = figures.get(
                what, {"value": results.get("failed", "not measured"), "met": None}
            )
            verdict = {True: "met", False: "missed", None: ""}[figure["met"] if goal else None]
            lines.append(f"| {what} | {figure['value']} | {goal} | {verdict} |")
    measured_on = sorted({device for device in devices if device})
    lines += ["", f"Measured on: {', '.join(measured_on) or 'no GPU so far'}."]
    return "\n".join(lines)


def write_table(readme: Path, folder: Path) -> None:
    """Write the table between the two marks of a README."""
    text = readme.read_text(encoding="utf-8")
    between = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not between.search(text):
        sys.exit(f"{readme}: has no {BEGIN} with {END} after it; put both where the table goes")
    new = between.sub(lambda _: f"{BEGIN}\n\n{table(folder)}\n\n{END}", text)
    readme.write_text(new, encoding="utf-8")


def measure_part(args: argparse.Namespace) -> None:
    """Measure one part, in this process, and write its file."""
    figures, details = PARTS[args.part].measure(args)
    import torch

    is_gpu = args.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if is_gpu else "cpu")
    values = {what: vars(figure) for what, figure in figures.items()}
    results = {"tiny": args.tiny, "figures": values, "details": details}
    common.write(args.json, f"gpu-{args.part}", device, results)


def measure_all(args: argparse.Namespace, folder: Path) -> bool:
    """Measure what is missing, until the time is over; return whether all parts are there."""
    began, words = time.monotonic(), ["--device", args.device, "--data", args.data]
    words += [*(["--tiny"] if args.tiny else [])]
    for option in ("resnet", "vit"):
        words += [f"--{option}", getattr(args, option)] if getattr(args, option) else []
    complete = True
    for name in args.parts.split(",") if args.parts else PARTS:
        path = folder / f"{name}.json"
        if read(path).get("figures") and not args.fresh:
            print(f"{name}: measured before", file=sys.stderr)
            continue
        left = 60 * args.minutes - (time.monotonic() - began)
        if left < 30:
            print("the time is over; the same command goes on from here", file=sys.stderr)
            return False
        print(f"{name}: at most {min(PARTS[name].seconds, left):.0f} s", file=sys.stderr)
        command = [sys.executable, __file__, "--part", name, "--json", str(path), *words]
        start = time.monotonic()
        try:
            common.run(command, timeout=min(PARTS[name].seconds, left))
        except common.ChildFailed as error:
            complete = False
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"failed": f"failed: {error}"}) + "\n")
            print(f"{name}: {error}", file=sys.stderr)
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return complete


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=35.0, help="stop after so many")
    parser.add_argument(
        "--data", default="sample", metavar="DIR", help="all of CIFAR-10, in the Hub's layout"
    )
    parser.add_argument("--resnet", metavar="FOLDER", help="ResNet-18 with ImageNet weights")
    parser.add_argument("--vit", metavar="FOLDER", help="DINOv2 ViT-S/14")
    parser.add_argument("--parts", metavar="A,B", help=f"only these of {', '.join(PARTS)}")
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, on any machine")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--results", type=Path, default=common.HERE / "results" / "gpu")
    parser.add_argument("--readme", type=Path, default=README)
    for option in ("part", "json", "digest", "planned"):
        kind = Path if option == "json" else str
        parser.add_argument(f"--{option}", type=kind, help="(used by the script itself)")
    args = parser.parse_args()
    if unknown := set(args.parts.split(",") if args.parts else ()) - set(PARTS):
        parser.error(f"--parts: {min(unknown)}: not one of {', '.join(PARTS)}")
    if args.part:
        return measure_part(args)
    if args.digest or args.planned:
        return print_digest(args) if args.digest else print_planned(args)
    import torch

    if not args.tiny and (args.device == "cpu" or not torch.cuda.is_available()):
        sys.exit("no GPU here; --tiny shows on any machine that the suite runs")
    if args.tiny:
        if args.results == parser.get_default("results"):
            args.results = Path(tempfile.mkdtemp(prefix="hf-cifar-gpu-tiny-"))
        if args.readme == README:
            args.results.mkdir(parents=True, exist_ok=True)
            args.readme = shutil.copy(README, args.results / "README.md")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part ends, too
    complete = measure_all(args, args.results)
    write_table(Path(args.readme), args.results)
    print(table(args.results))
    print(f"figures: {args.results}; table: {args.readme}", file=sys.stderr)
    sys.exit(0 if complete else 1)


if __name__ == "__main__":
    main()
