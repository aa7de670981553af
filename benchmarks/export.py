"""What an export costs and gives: finished runs as ONNX graphs with 32 and 8 bits, against torch.

Each run is exported into a folder that is removed afterwards. Float32 should answer as torch does;
8 bits should lose 0.5 points at most, take 30 % of the size at most and answer at least 1.5 times
as many images/s as torch at batch 1 on one thread. Speeds are medians of turns, one side after the
other, by seconds of the processor.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path
from typing import Any

import common


def measure(run: str, test_images: int | None, data: str | None) -> dict[str, Any]:
    import json

    from hf_cifar.runs.export_run import ExportOptions, export_run

    keys = {"max_eval_samples": str(test_images)} if test_images else {}
    if data:
        keys["dataset_name"] = data
    metrics = json.loads((Path(run) / "metrics.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        facts = export_run(run, keys, ExportOptions(int8=True, out=Path(folder)))
    speed = facts["images_per_second"]
    return {
        "base_model": metrics["base_model"],
        "method": metrics.get("method_description"),
        "image_size": metrics["image_size"],
        "points_lost": 100 * (facts["accuracy"]["torch"] - facts["accuracy"]["int8"]),
        "size_share": facts["bytes"]["int8"] / facts["bytes"]["float32"],
        "times_torch": {
            kind: {batch: rates[batch] / speed["torch"][batch] for batch in rates}
            for kind, rates in speed.items()
            if kind != "torch"
        },
        **facts,
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs")
    options.add_argument("--test-images", type=int, help="default: all")
    options.add_argument("--data", help="in place of the runs' own data")
    options.add_argument("--json", type=Path, default=common.HERE / "results" / "export.json")
    args = options.parse_args()
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("hf_cifar").setLevel(logging.ERROR)
    results = []
    for run in args.runs:
        results.append(measure(run, args.test_images, args.data))
        one = results[-1]
        print(
            f"{one['base_model']} at {one['image_size']} px: float32 agrees on"
            f" {100 * one['agreement']:.2f} % of {one['test_images']} images, logits within"
            f" {one['max_logit_difference']:.2g}; int8 ({one['int8_kind']}) loses"
            f" {one['points_lost']:.2f} points, {100 * one['size_share']:.1f} % of the size,"
            f" {one['times_torch']['int8']['1']:.2f} times torch at batch 1",
            flush=True,
        )
        common.write(args.json, "export", torch.device("cpu"), {"runs": results})


if __name__ == "__main__":
    main()
