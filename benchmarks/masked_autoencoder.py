"""Does pre-training without labels pay? A small ViT is pretrained as a masked autoencoder, then
fine-tuned on a few labels, beside the same ViT from random weights with the same steps.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import common

HERE = Path(__file__).parent


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import torch

    import hf_cifar
    from hf_cifar.recipe.load import load_recipe

    torch.set_num_threads(args.threads)
    shared = {
        "dataset_name": args.data,
        "max_eval_samples": args.test_images,
        "bf16": False,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    pretraining = shared | {
        "max_train_samples": args.images,
        "num_train_epochs": args.epochs,
        "per_device_train_batch_size": 64,  # more steps than the recipe's 256, for so few epochs
        "output_dir": str(folder / "encoder"),
    }
    pretrained = hf_cifar.train("mae/vit_tiny_cifar", **pretraining)
    recipe = load_recipe("mae/vit_tiny_cifar")
    assert recipe.model_config is not None
    encoder = {
        name: value
        for name, value in recipe.model_config.items()
        if not name.startswith("decoder_")
    }
    fine_tuning = shared | {
        "max_train_samples": args.labels,
        "num_train_epochs": args.label_epochs,
        "per_device_train_batch_size": 64,
        "random_resized_crop_scale": [0.5, 1.0],
        "learning_rate": 1e-3,
        "weight_decay": 0.05,
        "eval_strategy": "no",
        "save_strategy": "no",
        "method": "full",
    }
    starts: dict[str, dict[str, Any]] = {
        "pretrained": {"model_name_or_path": str(pretrained.path)},
        "from random weights": {
            "from_scratch": True,
            "model_config": encoder | {"model_type": "vit"},
        },
    }
    path = folder / "fine_tuning.yaml"
    path.write_text(json.dumps(fine_tuning))
    rows = []
    for start, keys in starts.items():
        for seed in range(args.seeds):
            out: dict[str, Any] = {"seed": seed, "output_dir": str(folder / f"{start} {seed}")}
            run = hf_cifar.train(str(path), **keys, **out)
            shown = ("test_accuracy", "test_accuracy_ci95", "global_step", "train_runtime")
            rows.append({"start": start, "seed": seed} | {n: run.metrics[n] for n in shown})
    names = ("eval_loss", "eval_knn_accuracy", "eval_linear_accuracy")
    history = pretrained.metrics["history"]
    return {
        "benchmark": "masked-autoencoder",
        "command": f"python benchmarks/masked_autoencoder.py --data DIR --images {args.images}"
        f" --epochs {args.epochs} --labels {args.labels} --label-epochs {args.label_epochs}"
        f" --test-images {args.test_images} --seeds {args.seeds} --threads {args.threads}",
        **common.machine_facts(torch.device("cpu")),
        "mask_ratio": recipe.mask_ratio,
        "pretraining": {
            name: pretrained.metrics[name]
            for name in (
                "test_loss",
                "test_knn_accuracy",
                "test_linear_accuracy",
                "probe_images",
                "global_step",
                "train_runtime",
                "train_steady_samples_per_second",
            )
        },
        "curve": [
            {"step": entry["step"]} | {name: entry[name] for name in names}
            for entry in history
            if "eval_loss" in entry
        ],
        "results": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="sample", help="folder or archive of CIFAR-10")
    parser.add_argument("--images", type=int, default=50_000, help="to pretrain on")
    parser.add_argument("--epochs", type=float, default=40)
    parser.add_argument("--labels", type=int, default=5_000, help="to fine-tune on")
    parser.add_argument("--label-epochs", type=float, default=20)
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=3, help="of the fine-tuning")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder for the runs; default: a temporary one")
    parser.add_argument("--quick", action="store_true", help="the smallest size, on the sample")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "masked-autoencoder.json")
    args = parser.parse_args()
    if args.quick:
        args.data, args.images, args.labels, args.test_images = "sample", 300, 100, 100
        args.epochs, args.label_epochs, args.seeds, args.threads = 1, 1, 1, 1
    with tempfile.TemporaryDirectory() as temporary:
        result = measure(args, args.keep or Path(temporary))
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
