"""Measure ViT-H/14 at 224 px on a GPU, by method, with and without gradient checkpointing and
torch.compile: images/s, the share of the bf16 matrix peak measured at the same time, and peak
device memory. Each row is a process of its own.

A training step counts the work of the model, without what checkpointing repeats: forward and two
backward products (full), one backward product for frozen weights (LoRA), both only for the blocks
that train (partial), forward alone (linear: the pass that computes the features).
"""

import argparse
import json
import sys
import time
from typing import Any

import common

from hf_cifar.reporting.provenance import peak_memory


def matrix_peak(device: Any, size: int) -> float:
    """FLOP/s of a bf16 matrix product of `size` cubed, best of five runs of twenty."""
    import torch

    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    seconds = []
    for _ in range(6):
        common.wait(device)
        began = time.perf_counter()
        for _ in range(20):
            a @ a
        common.wait(device)
        seconds.append(time.perf_counter() - began)
    return 20 * 2 * size**3 / min(seconds[1:])


def side(args: argparse.Namespace) -> None:
    device = common.start(args)
    from hf_cifar.augmentation.transforms import make_transforms
    from hf_cifar.data.batches import ImageBatches, resident_pixels
    from hf_cifar.data.image_cache import cache_folder
    from hf_cifar.data.load import load_data
    from hf_cifar.features.extract import compute_features
    from hf_cifar.methods.table import METHODS
    from hf_cifar.models.flops import forward_flops
    from hf_cifar.models.load import load_backbone
    from hf_cifar.runs.run import train_recipe

    peak = matrix_peak(device, 256 if args.smoke else 8192)
    with common.workplace() as folder:
        keys = {
            "method": args.method,
            "max_steps": args.steps,
            "per_device_train_batch_size": args.batch,
            "bf16": True,
        }
        keys |= {
            "gradient_checkpointing": args.checkpointing,
            "torch_compile": args.compile,
            "max_eval_samples": 10,
        }
        keys |= {"max_train_samples": args.images, "unfreeze_blocks": args.blocks}
        model = "vit-h14"
        if args.smoke:  # one block of the real width, four patches
            keys |= {
                "model_config": common.MODELS[model].config | {"num_hidden_layers": 1},
                "image_size": 28,
            }
        recipe = common.recipe(folder, args.data, model, **keys)
        if args.method == "linear":
            data = load_data(recipe)
            backbone = load_backbone(recipe, data.label_names)
            frozen = METHODS["linear"](recipe).prepare(backbone.model).to(device)
            flops = forward_flops(frozen, backbone.image_size, device)
            pixels = resident_pixels(data.train.images, device, "auto")
            batches = ImageBatches(
                data.train, make_transforms(recipe, backbone), training=False, resident=pixels
            )
            speed = 0.0
            for name in (
                "warm-up",
                "timed",
            ):  # two names, so that the second pass finds nothing cached
                began = time.perf_counter()
                compute_features(
                    frozen,
                    batches,
                    cache_folder(),
                    views=1,
                    bf16=True,
                    batch_size=args.batch,
                    weights=name,
                    progress=None,
                )
                speed = len(batches) / (time.perf_counter() - began)
            memory, work = peak_memory(device)["peak_device_memory_bytes"], 1.0
        else:
            metrics = train_recipe(recipe).metrics
            speed = metrics["train_steady_samples_per_second"]
            memory, flops = metrics["peak_device_memory_bytes"], metrics["forward_flops_per_image"]
            depth = recipe.model_config["num_hidden_layers"]
            work = {"full": 3.0, "lora": 2.0, "partial": 1 + 2 * min(args.blocks, depth) / depth}[
                args.method
            ]
    peak = max(peak, matrix_peak(device, 256 if args.smoke else 8192))
    row = {
        "images_per_second": speed,
        "flops_per_image": work * flops,
        "peak": peak,
        "memory": memory,
    }
    print(json.dumps(row | {"share": speed * work * flops / peak if speed else None}))


def main() -> None:
    parser = common.parser(__doc__, turns=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--images", type=int, default=1280)
    parser.add_argument("--blocks", type=int, default=4, help="that train with `partial`")
    parser.add_argument(
        "--smoke", action="store_true", help="a few steps of one block, on any device"
    )
    parser.add_argument("--side", action="store_true", help="(used by the benchmark itself)")
    parser.add_argument(
        "--method", choices=("full", "lora", "partial", "linear"), help="this one only"
    )
    parser.add_argument(
        "--checkpointing", action="store_true", help="(used by the benchmark itself)"
    )
    parser.add_argument(
        "--compile", action="store_true", help="with --plain: with torch.compile, and nothing else"
    )
    parser.add_argument(
        "--plain", action="store_true", help="without the variants of checkpointing and compiling"
    )
    args = parser.parse_args()
    if args.side:
        return side(args)

    device = common.start(args)
    args.smoke = args.smoke or args.quick
    if device.type != "cuda" and not args.smoke:
        print(
            "no CUDA device: ViT-H/14 is not measured here"
            " (--smoke runs a few steps of one block of it)"
        )
        return None
    methods = [args.method] if args.method else ["full", "lora", "partial", "linear"]
    variants: list[tuple[str, ...]] = [
        (),
        ("--checkpointing",),
        ("--compile",),
        ("--checkpointing", "--compile"),
    ]
    if args.plain:
        variants = [("--compile",) if args.compile else ()]
    if args.smoke:
        args.batch, args.steps, args.images, args.blocks, args.turns = 2, 4, 8, 1, 1
        methods, variants = methods[:1] if args.quick else methods, variants[:1]
    words = [
        "--side",
        "--device",
        args.device,
        "--data",
        args.data,
        "--batch",
        args.batch,
        "--steps",
        args.steps,
    ]
    words += ["--images", args.images, "--blocks", args.blocks] + (
        ["--smoke"] if args.smoke else []
    )
    rows: list[dict[str, Any]] = []
    with common.workplace():
        for _ in range(args.turns):
            for method in methods:
                for variant in variants if method != "linear" else [()]:
                    try:
                        row = common.child(__file__, *words, "--method", method, *variant)
                    except (
                        SystemExit
                    ) as error:  # most likely out of memory; torch's message stands above
                        print(error, file=sys.stderr)
                        row = {"failed": True}
                    row |= {"method": method, "variant": " ".join(variant)}
                    rows.append(row)
                    if "failed" in row:
                        print(f"{method:<8} {row['variant']:<28} failed")
                        continue
                    share, memory = row["share"], row["memory"]
                    print(
                        f"{method:<8} {row['variant']:<28}"
                        f" {row['images_per_second'] or 0:8.1f} images/s"
                        f" {100 * share:5.1f} % of {row['peak'] / 1e12:.1f} TFLOP/s"
                        + (f" {memory / 1e9:6.1f} GB" if memory else "")
                    )
    common.keep(args, device, "vit-huge", {"batch": args.batch, "steps": args.steps, "rows": rows})
    return None


if __name__ == "__main__":
    main()
