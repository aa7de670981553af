"""Compare a whole run with the stock recipe: fine-tuning as transformers' own example does it, with
0 workers (its default) and with the best of 2, 8 and all cores.

Both sides use the same model, epochs, batch and precision, train, score the test images and save
the model. Each is a process of its own, so that neither leaves anything behind for the other. Ours
also writes plots and a card. Seconds are those of the whole process; `work` leaves the imports out.
The caches of both sides are filled.
"""

import argparse
import json
import os
import sys
import time

import common


def side(args: argparse.Namespace) -> None:
    device = common.start(args)
    import torch

    from hf_cifar.cli import main
    from hf_cifar.models.load import load_backbone

    with common.workplace() as folder:
        few = {"max_train_samples": args.images, "max_eval_samples": args.test_images}
        batch = {"per_device_train_batch_size": args.batch, "per_device_eval_batch_size": 128}
        recipe = common.recipe(
            folder, args.data, args.model, num_train_epochs=args.epochs, **few, **batch
        )
        bf16 = recipe.training["bf16"] = args.precision == "bf16"
        if args.side == "stock":
            from stock_recipe import load, stock_trainer

            began = time.perf_counter()
            data = load(args.data, args.images, args.test_images)
            backbone = load_backbone(recipe, [str(i) for i in range(10)])
            more = {
                "num_train_epochs": args.epochs,
                "dataloader_num_workers": args.workers,
                "bf16": bf16,
            }
            trainer = stock_trainer(backbone, folder / "stock", data, [], **batch, **more)
            trainer.train()
            accuracy = trainer.evaluate()["eval_accuracy"]
            trainer.save_model()
        else:
            began = time.perf_counter()
            main.run(["train", str(folder / "recipe.yaml"), "--bf16", str(bf16)])
            accuracy = json.loads((folder / "run" / "metrics.json").read_text())["test_accuracy"]
        if device.type == "cuda":
            torch.cuda.synchronize()
        print(json.dumps({"work": time.perf_counter() - began, "accuracy": accuracy}))


def main() -> None:
    parser = common.parser(__doc__, turns=3)
    parser.add_argument("--model", choices=common.MODELS, default="toy")
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of both sides"
    )
    parser.add_argument(
        "--stock-fp32", action="store_true", help="leave the stock side at its default precision"
    )
    parser.add_argument(
        "--side", choices=("hf-cifar", "stock"), help="(used by the benchmark itself)"
    )
    parser.add_argument("--workers", type=int, default=0, help="(used by the benchmark itself)")
    args = parser.parse_args()
    if args.quick:
        args.images, args.test_images, args.epochs, args.turns = 64, 20, 1, 1
    if args.side:
        return side(args)

    device = common.start(args)
    with common.workplace() as folder:
        recipe = common.recipe(folder, args.data, args.model)
        precision = "bf16" if common.settle(recipe, args.precision, device) else "fp32"

        def run(name: str, workers: int = 0, epochs: float = args.epochs) -> float:
            how = "fp32" if name == "stock" and args.stock_fp32 else precision
            words = [
                "--side",
                name,
                "--workers",
                workers,
                "--model",
                args.model,
                "--device",
                args.device,
                "--data",
                args.data,
            ]
            words += ["--epochs", epochs, "--batch", args.batch, "--precision", how]
            words += ["--images", args.images, "--test-images", args.test_images]
            result = common.child(__file__, *words)
            works.setdefault(f"{name}, {workers} workers" if name == "stock" else name, []).append(
                result["work"]
            )
            return result["wall"]

        works: dict[str, list[float]] = {}
        tried: dict[int, float] = {}
        if not args.quick:
            run("hf-cifar", epochs=0.1)  # warms the caches of both
            tried = {n: run("stock", n) for n in sorted({2, 8, os.cpu_count() or 1})}
            print(f"stock recipe by workers, seconds: {tried}", file=sys.stderr)
        best = min(tried, key=lambda n: tried[n]) if tried else 0
        works.clear()
        sides = {"hf-cifar": lambda: run("hf-cifar"), "stock, 0 workers": lambda: run("stock", 0)}
        if best:
            sides[f"stock, {best} workers"] = lambda: run("stock", best)
        seconds = common.in_turn(sides, args.turns, "s")
    speedups = {}
    for name in list(sides)[1:]:
        speedups[name] = common.ratio(seconds[name], seconds["hf-cifar"])
        inner = common.ratio(works[name], works["hf-cifar"])
        common.say(f"{args.model}, {precision}: times as fast as the {name}", speedups[name])
        common.say("  without imports", inner)
        speedups[f"{name}, without imports"] = inner
    sizes = {
        "epochs": args.epochs,
        "batch": args.batch,
        "images": args.images,
        "test_images": args.test_images,
    }
    results = {
        "model": args.model,
        "precision": precision,
        "stock_fp32": args.stock_fp32,
        **sizes,
        "workers_tried": tried,
    }
    common.keep(
        args,
        device,
        f"stock-{args.model}",
        results | {"seconds": seconds, "work": works, "speedup": speedups},
    )
    return None


if __name__ == "__main__":
    main()
