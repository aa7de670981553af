"""Measure pipeline efficiency: the share of a bare training loop's images/s that `hf-cifar train`
reaches.

Both sides train the same model with the same batch and precision, fused AdamW and gradient
clipping. Ours also reads, crops, mirrors, resizes and normalises its images, follows a schedule and
logs. The first quarter of the steps is left out on both sides.
"""

import common


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--model", choices=common.MODELS, default="toy")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument(
        "--images",
        type=int,
        default=1024,
        help="images of the training set, which is repeated",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto: what hf-cifar would choose",
    )
    args = parser.parse_args()
    device = common.start(args)

    from hf_cifar.runs.run import train_recipe

    shape = common.MODELS[args.model]
    gpu = device.type == "cuda"
    batch, steps = (
        args.batch or (128 if gpu else shape.batch),
        args.steps or (100 if gpu else shape.steps),
    )
    images, turns = args.images, args.turns
    if args.quick:
        batch, steps, images, turns = 8, 8, 64, 2
    with common.workplace() as folder:
        few = {"max_train_samples": images, "max_eval_samples": 10}
        recipe = common.recipe(
            folder, args.data, args.model, max_steps=steps, per_device_train_batch_size=batch, **few
        )
        bf16 = common.settle(recipe, args.precision, device)

        def ours() -> float:
            return train_recipe(recipe, fresh=True).metrics["train_steady_samples_per_second"]

        sides = {"hf-cifar": ours, "bare": lambda: common.bare_loop(recipe, device, batch, steps)}
        figures = common.in_turn(sides, turns, "images/s")
    share = common.ratio(figures["hf-cifar"], figures["bare"])
    goal = (">= 0.98" if gpu else ">= 0.97") if args.model != "toy" else ">= 0.90"
    common.say(
        f"{args.model}, {'bf16' if bf16 else 'fp32'}, batch {batch}: share of the bare loop",
        share,
        goal,
    )
    results = {
        "model": args.model,
        "batch": batch,
        "steps": steps,
        "bf16": bf16,
        "images_per_second": figures,
        "share": share,
    }
    common.keep(args, device, f"efficiency-{args.model}", results)


if __name__ == "__main__":
    main()
