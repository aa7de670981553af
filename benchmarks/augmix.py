"""Training against shift: what AugMix with its consistency loss takes off the mean error under
corruptions, beside the same recipe without it at equal steps.

A step of AugMix sees three views of each image, so that its model does three times the work. The
sides are trained on the first images of the training set, and both are then scored by `stress` on
the first test images. What was measured stands in the JSON file after each side, and the same
command goes on from there.
"""

import json
import time
from typing import Any

import common

SIDES: dict[str, dict[str, Any]] = {
    "baseline": {},
    "augmix": {"auto_augment": "augmix", "consistency_weight": 12.0},
}
# As in recipes/resnet_18/full.yaml
RECIPE = {
    "layer_decay": 0.75,
    "per_device_train_batch_size": 64,
    "learning_rate": 1e-3,
    "weight_decay": 0.05,
    "label_smoothing_factor": 0.1,
}


def main() -> None:
    parser = common.parser(__doc__, turns=1)
    parser.add_argument("--model", default="resnet-18", help="a folder, or a name of common.MODELS")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--train-images", type=int, default=10_000)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--images", type=int, default=1000, help="test images a corruption")
    parser.add_argument("--severities", default="1-5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="train and score in bfloat16")
    args = parser.parse_args()
    device = common.start(args)
    if args.quick:
        args.model, args.image_size, args.epochs, args.severities = "toy", 32, 1, "5"
        args.train_images, args.images = 128, 40

    from hf_cifar.augmentation.corruptions import BENCHMARK
    from hf_cifar.evaluation.stress import Options, parse_severities, stress
    from hf_cifar.runs.run import train_recipe

    path = args.json or common.HERE / "results" / "augmix-resnet-18.json"
    args.json = None if args.quick and args.json is None else path
    settings = ("image_size", "train_images", "epochs", "images", "severities", "seed", "bf16")
    keep = {name: getattr(args, name) for name in settings}
    sides: dict[str, Any] = {}
    if args.json is not None and path.is_file():
        before = json.loads(path.read_text())
        sides = before["sides"] if all(before[n] == v for n, v in keep.items()) else {}
    with common.workplace() as folder:
        for name, more in SIDES.items():
            if name in sides:
                continue
            keys = RECIPE | more | {"seed": args.seed, "num_train_epochs": args.epochs}
            keys |= {"image_size": args.image_size, "max_train_samples": args.train_images}
            keys |= {"max_eval_samples": args.images, "output_dir": str(folder / name)}
            keys |= {"bf16": args.bf16, "channels_last": False}
            recipe = common.recipe(folder, args.data, args.model, **keys)
            began = time.perf_counter()
            run = train_recipe(recipe)
            seconds = time.perf_counter() - began
            options = Options(
                tuple(BENCHMARK),
                parse_severities(args.severities),
                precision="bf16" if args.bf16 else "fp32",
            )
            result, _ = stress(str(run.path), None, {}, options, None)
            sides[name] = {
                "accuracy": result["clean"],
                "mean_error": result["mean_error"],
                "corruptions": result["corruptions"],
                "left_out": result["left_out"],
                "train_seconds": seconds,
                "keys": more,
            }
            print(f"{name}: clean {result['clean']:.4f}, mean error {result['mean_error']:.4f}")
            if args.json is not None:
                common.keep(args, device, "augmix", keep | {"recipe": RECIPE, "sides": sides})
        gain = sides["baseline"]["mean_error"] - sides["augmix"]["mean_error"]
        print(f"AugMix takes {100 * gain:.2f} points off the mean error  goal 10")


if __name__ == "__main__":
    main()
