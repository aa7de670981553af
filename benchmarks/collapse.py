"""Does the feature monitor tell of a planted collapse before validation accuracy has fallen?

Full fine-tuning whose learning rate is multiplied by 100 from one step on, for every weight but
the head's. Validation is scored every few steps, with `monitor_features`.
"""

from typing import Any

import common

FACTOR = 100
SHOWN = ("accuracy", "knn_accuracy", "effective_rank", "class_separation", "cka")


def main() -> None:
    parser = common.parser(__doc__, turns=1)
    parser.add_argument("--model", default="resnet-18", help="a folder, or a name of common.MODELS")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--train-images", type=int, default=2000)
    parser.add_argument("--validation-images", type=int, default=500)
    parser.add_argument("--every", type=int, default=2, help="steps from one scoring to the next")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    device = common.start(args)
    if args.quick:
        args.model, args.image_size, args.seeds = "toy", 32, 1
        args.train_images, args.validation_images = 256, 64

    from transformers import TrainerCallback
    from transformers.trainer import DEFAULT_CALLBACKS

    from hf_cifar.runs.run import train_recipe

    class RaiseRates(TrainerCallback):
        """Raises the rates of all weights but the head's when half of the steps are made."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == state.max_steps // 2:
                scheduler, groups = kwargs["lr_scheduler"], kwargs["optimizer"].param_groups
                for number, group in enumerate(groups):
                    if not str(group.get("name", "")).startswith("head"):
                        scheduler.base_lrs[number] *= FACTOR
                        group["lr"] *= FACTOR

    raise_rates = RaiseRates()
    DEFAULT_CALLBACKS.append(raise_rates)  # type: ignore[arg-type]
    rows = []
    with common.workplace() as folder:
        for seed in range(args.seeds):
            keys = {
                "seed": seed,
                "image_size": args.image_size,
                "max_train_samples": args.train_images + args.validation_images,
                "validation_fraction": args.validation_images
                / (args.train_images + args.validation_images),
                "max_eval_samples": args.validation_images,
                "per_device_train_batch_size": 32,
                "num_train_epochs": 2,
                "learning_rate": 1e-4,
                "monitor_features": True,
                "eval_strategy": "steps",
                "eval_steps": args.every,
                "save_strategy": "no",
                "logging_steps": args.every,
                "output_dir": str(folder / str(seed)),
            }
            recipe = common.recipe(folder, args.data, args.model, **keys)
            metrics = train_recipe(recipe).metrics
            rows.append(outcome(seed, metrics))
            print({name: rows[-1][name] for name in rows[-1] if name != "history"})
    common.keep(args, device, "collapse", {"factor": FACTOR, "every": args.every, "seeds": rows})


def outcome(seed: int, metrics: dict[str, Any]) -> dict[str, Any]:
    """Return after which step the rates rose, at which the monitor then first warned and the
    accuracy first lay 10 points below its best (None where that did not come), and at which steps
    the monitor had warned before.
    """
    scored = [entry for entry in metrics["history"] if "eval_accuracy" in entry]
    warnings = metrics["feature_warnings"]
    warned = [int(text.split("at step ")[1].split()[0]) for text in warnings]
    raised = metrics["global_step"] // 2
    best, fallen = 0.0, None
    for entry in scored:
        best = max(best, entry["eval_accuracy"])
        if fallen is None and entry["step"] > raised and entry["eval_accuracy"] < best - 0.10:
            fallen = entry["step"]
    return {
        "seed": seed,
        "raised_after": raised,
        "warned_before": [step for step in warned if step <= raised],
        "warned_at": next((step for step in warned if step > raised), None),
        "accuracy_fallen_at": fallen,
        "history": [
            {"step": entry["step"]} | {name: round(entry[f"eval_{name}"], 4) for name in SHOWN}
            for entry in scored
        ],
    }


if __name__ == "__main__":
    main()
