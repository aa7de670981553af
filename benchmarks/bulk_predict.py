"""Measure bulk prediction: images/s of `hf-cifar predict --out` and of `hf-cifar evaluate` on the
same model and pictures, each from the call to its result, so that both load the model.

fp32 gives the answers of single pictures; auto is what is fastest here.
"""

import time

import common


def main() -> None:
    parser = common.parser(__doc__, turns=3)
    parser.add_argument("--model", choices=common.MODELS, default="resnet-18")
    args = parser.parse_args()
    device = common.start(args)
    if args.quick:
        args.model, args.turns = "toy", 1

    from hf_cifar.data.load import load_split
    from hf_cifar.evaluation.bulk_predict import bulk_predict
    from hf_cifar.evaluation.evaluate import evaluate
    from hf_cifar.models.load import load_backbone

    with common.workplace() as folder:
        recipe = common.recipe(folder, args.data, args.model)
        test = load_split(recipe, "test")
        backbone = load_backbone(recipe, list(test.images.label_names))
        model = str(folder / "model")
        backbone.model.save_pretrained(model)
        backbone.processor.save_pretrained(model)

        def evaluated(precision: str) -> float:
            began = time.perf_counter()
            evaluate(model, args.data, "test", 128, precision, "none")
            return len(test) / (time.perf_counter() - began)

        def predicted(precision: str) -> float:
            out = folder / "answers.parquet"
            began = time.perf_counter()
            bulk_predict(model, [args.data], out, top=3, split="test", precision=precision)
            seconds = time.perf_counter() - began
            out.unlink()
            return len(test) / seconds

        figures = common.in_turn(
            {
                "evaluate, fp32": lambda: evaluated("fp32"),
                "predict, fp32": lambda: predicted("fp32"),
                "evaluate, auto": lambda: evaluated("auto"),
                "predict, auto": lambda: predicted("auto"),
            },
            args.turns,
            "images/s",
        )
    shares = {
        precision: common.ratio(figures[f"predict, {precision}"], figures[f"evaluate, {precision}"])
        for precision in ("fp32", "auto")
    }
    for precision, share in shares.items():
        common.say(f"{args.model}, {precision}: share of evaluate", share, ">= 1")
    results = {"model": args.model, "images": len(test), "images_per_second": figures}
    common.keep(args, device, f"bulk-predict-{args.model}", results | {"shares": shares})


if __name__ == "__main__":
    main()
