"""Pipeline efficiency: how much of the bare training loop's speed `hf-cifar train` keeps.

Both sides train the same model at the same batch and precision with fused AdamW and gradient
clipping; ours also reads, crops, mirrors, resizes and normalises its images, follows a schedule and
logs. Steady state: the first quarter of the steps is left out on both sides.
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
        help="of the training set; it is passed over again and again",
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
        found = common.in_turn(sides, turns, "images/s")
    share = common.ratio(found["hf-cifar"], found["bare"])
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
        "images_per_second": found,
        "share": share,
    }
    common.keep(args, device, f"efficiency-{args.model}", results)


if __name__ == "__main__":
    main()
