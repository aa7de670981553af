"""Measure how cost grows with work: seconds with the number of images, images/s with image size and
model, and the start-up (from the command to the first step) beyond imports and weights, with an
empty and with a filled cache.
"""

import argparse
import builtins
import contextlib
import json
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import common

BEGAN = time.perf_counter()


class FirstStep(Exception):
    """Raised where the first training step would begin."""


def startup_side(args: argparse.Namespace) -> None:
    """Run `hf-cifar train` up to its first step. Imports are timed wherever they happen."""
    imports, depth, real_import = 0.0, 0, builtins.__import__

    def timed_import(*words: Any, **more: Any) -> Any:
        nonlocal imports, depth
        began, depth = time.perf_counter(), depth + 1
        try:
            return real_import(*words, **more)
        finally:
            depth -= 1
            imports += time.perf_counter() - began if depth == 0 else 0.0

    builtins.__import__ = timed_import
    common.start(args)
    from hf_cifar.cli import main
    from hf_cifar.objectives import classification
    from hf_cifar.training.trainer import CifarTrainer

    weights, load = 0.0, classification.load_backbone

    def timed_load(*words: Any) -> Any:
        nonlocal weights
        began, before = time.perf_counter(), imports
        backbone = load(*words)
        weights += time.perf_counter() - began - (imports - before)
        return backbone

    def first_step(*_: Any, **__: Any) -> None:
        raise FirstStep

    classification.load_backbone = timed_load  # type: ignore[assignment]
    CifarTrainer.training_step = first_step  # type: ignore[method-assign,assignment]
    with common.workplace() as folder, contextlib.suppress(FirstStep):
        common.recipe(folder, args.data, args.model, per_device_train_batch_size=8)
        main.run(["train", str(folder / "recipe.yaml")])
    total = time.perf_counter() - BEGAN
    print(
        json.dumps(
            {
                "total": total,
                "imports": imports,
                "weights": weights,
                "own": total - imports - weights,
            }
        )
    )


def startup(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the seconds of each start with an empty ("cold") and with a filled ("warm") cache."""
    starts: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    words = [
        "--side",
        "startup",
        "--model",
        args.model,
        "--data",
        args.data,
        "--device",
        args.device,
    ]
    for turn in range(args.turns):
        cache = {"HF_CIFAR_CACHE": str(folder / f"cache-{turn}")}
        for name in starts:
            starts[name].append(common.child(__file__, *words, environment=cache))
    for name, rows in starts.items():
        middle = {
            k: statistics.median(row[k] for row in rows)
            for k in ("total", "imports", "weights", "own")
        }
        goal = "  goal < 1" if name == "warm" else ""
        print(
            f"start-up, {name} cache: {middle['total']:.2f} s,"
            f" of which {middle['own']:.2f} s are its own"
            f" ({middle['imports']:.2f} imports, {middle['weights']:.2f} weights){goal}"
        )
    return starts


def against_images(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the seconds of training of one epoch of n images, the line through them, and how far
    they are off it.
    """
    import numpy as np

    from hf_cifar.runs.run import train_recipe

    counts = [n for n in (1000, 2000, 5000, 10_000, 20_000, 50_000) if n <= args.images]
    if args.quick:
        counts = [64, 128]

    def seconds(n: int) -> float:
        keys = {
            "max_train_samples": n,
            "num_train_epochs": 1,
            "per_device_train_batch_size": 50,
            "max_eval_samples": 10,
        }
        return train_recipe(
            common.recipe(folder, args.data, args.model, bf16=False, **keys), fresh=True
        ).metrics["train_runtime"]

    seconds(counts[0])  # the first run of a process pays for what is set up once
    sides = {str(n): partial(seconds, n) for n in counts}
    figures = common.in_turn(sides, args.turns, "s")
    middle = [statistics.median(figures[str(n)]) for n in counts]
    slope, fixed = np.polyfit(
        counts, middle, 1, w=1 / np.array(middle)
    )  # a machine's noise is a share of the time
    strays = {n: m / (slope * n + fixed) - 1 for n, m in zip(counts, middle, strict=True)}
    print(
        f"{args.model}: {1e3 * slope:.3f} ms an image and {fixed:.2f} s; off the line by at most",
        end=" ",
    )
    print(f"{100 * max(map(abs, strays.values())):.1f} %")
    return {
        "seconds": figures,
        "seconds_per_image": slope,
        "fixed_seconds": fixed,
        "off_the_line": strays,
    }


def against_size(args: argparse.Namespace, folder: Path, device: Any) -> dict[str, Any]:
    """Return images/s of ours and of the bare loop: of ViT-Ti/16 by image size, and of other models
    at their own size.
    """
    from hf_cifar.runs.run import train_recipe

    cases: list[tuple[str, int]] = [("vit-ti16", side) for side in (32, 64, 96, 128, 160, 192, 224)]
    cases += [(name, common.MODELS[name].image_size) for name in ("resnet-18", "vit-s16")]
    if device.type == "cuda":
        cases += [(name, 224) for name in ("vit-b16", "vit-h14")]
    if args.quick:
        cases = [("vit-ti16", 32)]
    figures: dict[str, Any] = {}
    for name, side in cases:
        shape = common.MODELS[name]
        batch = shape.batch * (16 if device.type == "cuda" else 1)
        steps = 4 if args.quick else 50 if device.type == "cuda" else shape.steps
        keys = {"image_size": side, "max_steps": steps, "per_device_train_batch_size": batch}
        recipe = common.recipe(
            folder, args.data, name, **keys, max_train_samples=512, max_eval_samples=10
        )
        bf16 = common.settle(recipe, "fp32" if args.quick else "auto", device)
        last: dict[str, Any] = {}

        def ours(recipe: Any = recipe, last: dict[str, Any] = last) -> float:
            last |= train_recipe(recipe, fresh=True).metrics
            return last["train_steady_samples_per_second"]

        def bare(recipe: Any = recipe, batch: int = batch, steps: int = steps) -> float:
            return common.bare_loop(recipe, device, batch, steps)

        rates = common.in_turn({"hf-cifar": ours, "bare": bare}, args.turns, "images/s")
        share, flops = (
            common.ratio(rates["hf-cifar"], rates["bare"]),
            last["forward_flops_per_image"],
        )
        speed = statistics.median(rates["hf-cifar"])
        print(
            f"{name:<10} {side:>4} px  {flops / 1e9:7.2f} GFLOP  {speed:9.1f} images/s"
            f"  {3 * flops * speed / 1e12:7.3f} TFLOP/s",
            end="",
        )
        common.say("  share of the bare loop", share)
        figures[f"{name} {side}"] = {
            "images_per_second": rates,
            "share": share,
            "forward_flops": flops,
            "bf16": bf16,
        }
    return figures


def main() -> None:
    parser = common.parser(__doc__, turns=3)
    parser.add_argument("--part", choices=("all", "images", "size", "startup"), default="all")
    parser.add_argument(
        "--model", choices=common.MODELS, default="toy", help="of `images` and `startup`"
    )
    parser.add_argument(
        "--images", type=int, default=2000, help="at most so many (the sample holds 2,000)"
    )
    parser.add_argument("--side", choices=("startup",), help="(used by the benchmark itself)")
    args = parser.parse_args()
    if args.side:
        return startup_side(args)
    if args.quick:
        args.turns = 1
    device = common.start(args)
    results: dict[str, Any] = {"model": args.model}
    with common.workplace() as folder:
        if args.part in ("all", "startup"):
            results["startup"] = startup(args, folder)
        if args.part in ("all", "images"):
            results["images"] = against_images(args, folder)
        if args.part in ("all", "size"):
            results["size"] = against_size(args, folder, device)
    common.keep(args, device, "scale" if args.part == "all" else f"scale-{args.part}", results)
    return None


if __name__ == "__main__":
    main()
