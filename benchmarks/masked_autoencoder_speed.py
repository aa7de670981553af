"""Measure the data path of pre-training: the share of a bare loop's images/s that `hf-cifar train
mae/vit_tiny_cifar` reaches.

The bare loop trains transformers' own ViTMAEForPreTraining of the same config and precision on one
batch that lies in memory.
"""

import common


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--images", type=int, default=1024, help="to train on, repeated")
    args = parser.parse_args()
    device = common.start(args)

    import torch
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    from hf_cifar.recipe.load import load_recipe
    from hf_cifar.runs.run import train_recipe

    batch, steps, images, turns = args.batch, args.steps, args.images, args.turns
    if args.quick:
        batch, steps, images, turns = 8, 8, 64, 2
    with common.workplace() as folder:
        keys = {
            "dataset_name": args.data,
            "max_train_samples": images,
            "max_steps": steps,
            "per_device_train_batch_size": batch,
            "validation_fraction": 0.0,
            "max_eval_samples": 10,
            "eval_strategy": "no",
            "save_strategy": "no",
            "bf16": False,
            "disable_tqdm": True,
            "output_dir": str(folder / "run"),
        }
        recipe = load_recipe("mae/vit_tiny_cifar", keys)
        assert recipe.model_config is not None
        config = {k: v for k, v in recipe.model_config.items() if k != "model_type"}

        def ours() -> float:
            return train_recipe(recipe, fresh=True).metrics["train_steady_samples_per_second"]

        def bare() -> float:
            settings = ViTMAEConfig(**config, mask_ratio=recipe.mask_ratio, norm_pix_loss=True)
            model = ViTMAEForPreTraining(settings).to(device).train()
            side = int(config["image_size"])
            pixels = torch.randn(batch, 3, side, side, device=device)
            rate = common.steps_per_second(
                model, lambda: model(pixel_values=pixels).loss, device, steps
            )
            return batch * rate

        figures = common.in_turn({"hf-cifar": ours, "bare": bare}, turns, "images/s")
    share = common.ratio(figures["hf-cifar"], figures["bare"])
    common.say(f"masked autoencoder, batch {batch}: share of the bare loop", share, ">= 0.95")
    results = {"batch": batch, "steps": steps, "images_per_second": figures, "share": share}
    common.keep(args, device, "masked-autoencoder-speed", results)


if __name__ == "__main__":
    main()
