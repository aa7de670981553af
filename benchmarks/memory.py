"""Measure by how much the peak host memory of a whole run (decoded table, training, scoring, plots,
card) exceeds that of the same model trained on one resident batch.

Each is a process of its own.
"""

import argparse
import json

import common

from hf_cifar.reporting.provenance import peak_memory


def side(args: argparse.Namespace) -> None:
    device = common.start(args)
    shape = common.MODELS[args.model]
    with common.workplace() as folder:
        keys = {
            "num_train_epochs": args.epochs,
            "per_device_train_batch_size": args.batch,
            "bf16": args.precision == "bf16",
        }
        recipe = common.recipe(folder, args.data, args.model, **keys, max_train_samples=args.images)
        if args.side == "bare":
            common.bare_loop(recipe, device, args.batch, 8)
        else:
            from hf_cifar.runs.run import train_recipe

            train_recipe(recipe)

    print(
        json.dumps(
            {"bytes": peak_memory(device)["peak_host_memory_bytes"], "image_size": shape.image_size}
        )
    )


def main() -> None:
    parser = common.parser(__doc__, turns=3)
    parser.add_argument("--model", choices=common.MODELS, default="toy")
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument(
        "--side", choices=("hf-cifar", "bare"), help="(used by the benchmark itself)"
    )
    args = parser.parse_args()
    if args.quick:
        args.images, args.turns = 64, 1
    if args.side:
        return side(args)

    device = common.start(args)

    def run(name: str) -> float:
        words = ["--side", name, "--device", args.device, "--precision", args.precision]
        for option in ("model", "data", "epochs", "batch", "images"):
            words += [f"--{option}", getattr(args, option)]
        return common.child(__file__, *words)["bytes"] / 1e6

    with common.workplace():
        megabytes = common.in_turn(
            {"hf-cifar": lambda: run("hf-cifar"), "bare": lambda: run("bare")}, args.turns, "MB"
        )
    above = [a - b for a, b in zip(megabytes["hf-cifar"], megabytes["bare"], strict=True)]
    print(
        f"{args.model}: {sorted(above)[len(above) // 2]:.0f} MB above"
        f" ({min(above):.0f} to {max(above):.0f})  goal <= 400"
    )
    results = {
        "model": args.model,
        "images": args.images,
        "epochs": args.epochs,
        "batch": args.batch,
    }
    common.keep(args, device, "memory", results | {"megabytes": megabytes, "above": above})
    return None


if __name__ == "__main__":
    main()
