"""Measure evaluation: images/s of `hf-cifar evaluate`, of a bare forward loop on one resident
batch, and of `pipeline("image-classification")` with the best of several batch sizes.

All three use the same precision.
"""

import dataclasses
import sys
import time

import common


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--model", choices=common.MODELS, default="vit-ti16")
    parser.add_argument("--batch", type=int, default=128, help="of ours and of the bare loop")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    args = parser.parse_args()
    device = common.start(args)
    sizes = [1, 8, 32, 128, 256]
    if args.quick:
        args.batch, args.images, args.turns, args.model, sizes = 8, 16, 2, "toy", [8]

    import numpy as np
    import torch
    from PIL import Image
    from transformers import pipeline

    from hf_cifar.data.image_store import ImageTable
    from hf_cifar.data.load import load_split
    from hf_cifar.evaluation.classifier import load_classifier, probabilities
    from hf_cifar.models.load import load_backbone

    with common.workplace() as folder:
        recipe = common.recipe(folder, args.data, args.model)
        test = load_split(recipe, "test")
        backbone = load_backbone(recipe, list(test.images.label_names))
        backbone.model.save_pretrained(folder / "model")
        backbone.processor.save_pretrained(folder / "model")
        classifier = load_classifier(str(folder / "model"))
        assert isinstance(test.images, ImageTable)
        rows = np.resize(test.rows, args.images)
        split = dataclasses.replace(test, rows=rows, labels=test.images.labels[rows])
        bf16, last = (
            common.settle(recipe, args.precision, device, frozen=True),
            bool(recipe.channels_last),
        )
        pictures = [Image.fromarray(np.moveaxis(p, 0, -1)) for p in test.images.batch(rows).numpy()]
        answer = pipeline("image-classification", model=str(folder / "model"), device=device)

        def ours() -> float:
            began = time.perf_counter()
            probabilities(classifier, split, batch_size=args.batch, bf16=bf16, channels_last=last)
            return args.images / (time.perf_counter() - began)

        @torch.inference_mode()
        def bare() -> float:
            pixels = torch.randn(
                min(args.batch, args.images),
                3,
                backbone.image_size,
                backbone.image_size,
                device=device,
            )
            pixels = pixels.contiguous(memory_format=torch.channels_last) if last else pixels
            common.wait(device)
            began, passes = time.perf_counter(), max(1, args.images // len(pixels))
            for _ in range(passes):
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    classifier.model(pixel_values=pixels)
            common.wait(device)
            return passes * len(pixels) / (time.perf_counter() - began)

        def piped(size: int) -> float:
            began = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                answer(pictures, batch_size=size)
            return args.images / (time.perf_counter() - began)

        tried = {size: piped(size) for size in sizes if size <= args.images}
        print(f"pipeline by batch size, images/s: {tried}", file=sys.stderr)
        best = max(tried, key=lambda size: tried[size])
        ours(), bare()  # the first pass of each pays for what is set up once
        figures = common.in_turn(
            {"hf-cifar": ours, "bare": bare, "pipeline": lambda: piped(best)},
            args.turns,
            "images/s",
        )
    share, speedup = (
        common.ratio(figures["hf-cifar"], figures["bare"]),
        common.ratio(figures["hf-cifar"], figures["pipeline"]),
    )
    title = f"{args.model}, {'bf16' if bf16 else 'fp32'}"
    common.say(f"{title}: share of the bare loop", share, ">= 0.97")
    common.say(
        f"{title}: times as fast as pipeline at batch {best}", speedup, ">= 4 for vit-s16 on a GPU"
    )
    results = {
        "model": args.model,
        "bf16": bf16,
        "batch": args.batch,
        "images": args.images,
        "pipeline_tried": tried,
    }
    more = {"images_per_second": figures, "share": share, "over_pipeline": speedup}
    common.keep(args, device, f"evaluation-{args.model}", results | more)


if __name__ == "__main__":
    main()
