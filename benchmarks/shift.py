"""Shift: what corruptions cost a model, what adaptation wins back, and what it does on clean, mixed
and one-class-after-another streams; and what `stress` takes beside the plain evaluation of as many
images.

Each corruption adapts a fresh copy of the model, to its test images as a whole (offline, through
the guard of `hf-cifar adapt`) and as a stream of batches (online).
"""

import copy
import dataclasses
import time
from typing import Any

import common
import numpy as np


def place(split: Any, labels: np.ndarray, rows: np.ndarray) -> Any:
    """Return the part of a split that has these rows, with their labels."""
    from hf_cifar.adaptation.adapt import Place

    part = dataclasses.replace(split, rows=split.rows[rows], labels=split.labels[rows])
    return Place(part, labels[rows])


class Mixed:
    """Images whose corruption changes from one to the next, as `CorruptedImages` otherwise."""

    def __init__(self, stores: list[Any]) -> None:
        self.stores, first = stores, stores[0]
        self.label_names, self.labels, self.size = first.label_names, first.labels, first.size
        self.pixels = None

    def batch(self, rows: np.ndarray) -> Any:
        import torch

        images = torch.empty((len(rows), 3, *self.size), dtype=torch.uint8)
        for number, store in enumerate(self.stores):
            here = np.flatnonzero(rows % len(self.stores) == number)
            if len(here):
                images[here] = store.batch(rows[here]).cpu()
        return images


def main() -> None:
    parser = common.parser(__doc__, turns=1)
    parser.add_argument("--model", default="resnet-18", help="a folder, or a name of common.MODELS")
    parser.add_argument("--images", type=int, default=1000, help="test images a corruption")
    parser.add_argument("--source-images", type=int, default=1000, help="others, for the guard")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--severity", type=int, default=5)
    parser.add_argument("--adaptations", default="batch_norm,tent", help="names with commas")
    parser.add_argument("--only", help="corruptions, with commas; default: the fifteen")
    parser.add_argument("--parts", default="cost,corruptions,streams")
    args = parser.parse_args()
    device = common.start(args)
    if args.quick:
        args.images, args.source_images, args.batch, args.model = 40, 100, 20, "toy"
        args.only, args.adaptations = "fog", "tent"

    from hf_cifar.adaptation.adapt import adapt, measure_source
    from hf_cifar.adaptation.answers import batches, shuffled
    from hf_cifar.adaptation.base import Settings
    from hf_cifar.adaptation.stream import run_stream
    from hf_cifar.adaptation.table import ADAPTATIONS
    from hf_cifar.augmentation.corruptions import BENCHMARK, left_out
    from hf_cifar.data.load import load_split
    from hf_cifar.evaluation.classifier import load_classifier, probabilities
    from hf_cifar.evaluation.stress import CorruptedImages
    from hf_cifar.evaluation.target_data import labels_of_model
    from hf_cifar.models.load import load_backbone

    with common.workplace() as folder:
        model = args.model
        if model in common.MODELS:
            recipe = common.recipe(folder, args.data, model)
            backbone = load_backbone(recipe, [str(i) for i in range(10)])
            backbone.model.save_pretrained(folder / "model")
            backbone.processor.save_pretrained(folder / "model")
            model = str(folder / "model")
        classifier = load_classifier(model)
        test = load_split(common.recipe(folder, args.data, "toy"), "test")
        labels = labels_of_model(classifier.labels, test)
        rows = np.arange(len(test))
        target = place(test, labels, rows[: args.images])
        source = place(test, labels, rows[args.images :][: args.source_images])
        names = args.only.split(",") if args.only else list(BENCHMARK)
        names = [name for name in names if not left_out([name])]
        results: dict[str, Any] = {
            "images": len(target.split),
            "source_images": len(source.split),
            "batch": args.batch,
            "severity": args.severity,
            "left_out": left_out(list(BENCHMARK)),
        }

        def store(name: str) -> Any:
            return CorruptedImages(
                test.images,
                name,
                args.severity,
                seed=0,
                device=device,
                most_pixels=max(32, classifier.transforms.image_size),
            )

        def damaged(name: str) -> Any:
            split = dataclasses.replace(target.split, images=store(name))
            return dataclasses.replace(target, split=split)

        def answered(split: Any) -> tuple[np.ndarray, float]:
            began = time.perf_counter()
            outputs = probabilities(classifier, split, batch_size=args.batch, bf16=False)
            return outputs, time.perf_counter() - began

        def keep() -> None:
            common.keep(args, device, "shift", results)

        if "cost" in args.parts:
            _, plain = answered(target.split)
            cost = {name: answered(damaged(name).split)[1] for name in names}
            _, again = answered(target.split)
            plain = (plain + again) / 2
            cheap = [t for n, t in cost.items() if n not in ("glass_blur", "jpeg_compression")]
            results["plain_seconds"], results["seconds"] = plain, cost
            results["overhead"] = sum(cheap) / len(cheap) / plain - 1 if cheap else None
            if cheap:
                print(f"stress over plain evaluation: {results['overhead']:+.1%}  goal 25 %")
            keep()

        def adaptation(name: str, of: Any) -> Any:
            ready = ADAPTATIONS[name](of.model, Settings())
            if ready.needs_source:
                rows = shuffled(source.split, args.batch, seed=0, epoch=0)
                ready.prepare(lambda: batches(of, source.split, args.batch, rows))
            return ready

        pristine = classifier.model
        known = measure_source(classifier, source, args.batch)
        if "corruptions" in args.parts:
            table = results["corruptions"] = {}
            for name in ["clean", *names]:
                place_of = target if name == "clean" else damaged(name)
                table[name] = {}
                for method in args.adaptations.split(","):
                    of = dataclasses.replace(classifier, model=copy.deepcopy(pristine))
                    outcome = adapt(
                        of, source, place_of, method, Settings(), size=args.batch, reference=known
                    )
                    table[name][method] = outcome.facts()
                    print(name, method, table[name][method], flush=True)
                keep()
            for method in args.adaptations.split(","):
                before, after = (
                    np.mean([1 - _result(table[n][method], after) for n in names])
                    for after in (False, True)
                )
                results[f"{method}_mean_error"] = [float(before), float(after)]
                print(f"{method}: mean error {before:.4f}, then {after:.4f}")

        if "streams" in args.parts:
            threshold = known.threshold
            mixed = dataclasses.replace(target.split, images=Mixed([store(n) for n in names]))
            sorted_rows = np.argsort(target.labels, kind="stable")
            one = place(test, labels, sorted_rows)
            in_turn = dataclasses.replace(one.split, images=store(names[-1]))
            streams = {
                "clean": (target.split, target.labels),
                "single": (damaged(names[-1]).split, target.labels),
                "mixed": (mixed, target.labels),
                "one class after another": (in_turn, one.labels),
                "one class after another, clean": (one.split, one.labels),
            }
            results["threshold"], results["streams"] = threshold, {}
            for title, (split, right) in streams.items():
                results["streams"][title] = {}
                for method in args.adaptations.split(","):
                    for guard in (False, True):
                        of = dataclasses.replace(classifier, model=copy.deepcopy(pristine))
                        done = run_stream(
                            of,
                            adaptation(method, of),
                            split,
                            args.batch,
                            reset=False,
                            threshold=threshold if guard else None,
                        )
                        row = {
                            "before": float((done.before.argmax(1) == right).mean()),
                            "after": float((done.after.argmax(1) == right).mean()),
                            "refused": done.refused,
                            "batches": done.batches,
                        }
                        key = f"{method}, {'guarded' if guard else 'unguarded'}"
                        results["streams"][title][key] = row
                        print(title, key, row, flush=True)
                keep()
        keep()


def _result(facts: dict[str, Any], after: bool) -> float:
    """Return the target's accuracy; `after` the command, which may have kept the model."""
    return facts["target_after" if after and not facts["kept"] else "target_before"]


if __name__ == "__main__":
    main()
