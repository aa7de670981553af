"""Metrics, labels and probabilities of a run that never was, and its card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from hf_cifar.evaluation.metrics import classification_metrics
from hf_cifar.reporting.model_card import write_card

LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SAMPLES = 300


def _made_up_run() -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Return metrics, labels [N] and probabilities [N, C] of a run that confuses cats and dogs."""
    rng = np.random.Generator(np.random.Philox(3))
    labels = rng.integers(0, 10, SAMPLES)
    logits = rng.normal(size=(SAMPLES, 10))
    logits[np.arange(SAMPLES), labels] += 3
    logits[labels == 3, 5] += 2.5
    exponential = np.exp(logits)
    probabilities = (exponential / exponential.sum(axis=1, keepdims=True)).astype(np.float32)
    history = []
    for step in range(10, 101, 10):
        history.append(
            {
                "loss": 2 / step,
                "learning_rate": 1e-3 * (1 - step / 100),
                "epoch": step / 50,
                "step": step,
            }
        )
        if step % 50 == 0:
            history.append(
                {
                    "eval_loss": 3 / step,
                    "eval_accuracy": step / 120,
                    "eval_knn_accuracy": step / 130,
                    "eval_class_separation": step / 200,
                    "eval_cka": 1 - step / 400,
                    "eval_effective_rank": 100 - step / 2,
                    "epoch": step / 50,
                    "step": step,
                }
            )
    metrics = classification_metrics(probabilities, labels, LABELS, "test")
    metrics |= classification_metrics(probabilities[:80], labels[:80], LABELS, "validation")
    metrics |= {
        "run_name": "my_run",
        "labels": LABELS,
        "base_model": "google/vit-base-patch16-224-in21k",
        "base_model_revision": "b4569560a39a0f1af58e3ddaf17facf20ab919b0",
        "base_model_license": "apache-2.0",
        "model_type": "vit",
        "model_class": "ViTForImageClassification",
        "method": "lora",
        "method_description": "fine-tuned with LoRA",
        "tags": ["lora", "peft"],
        "image_size": 224,
        "dataset": "uoft-cs/cifar10",
        "dataset_license": "not stated by its authors",
        "dataset_fingerprint": "8e2eb146ae340b09",
        "train_samples": 49_000,
        "total_parameters": 86_408_458,
        "trainable_parameters": 602_122,
        "forward_flops_per_image": 35_126_000_000,
        "train_runtime": 1834.21,
        "train_samples_per_second": 21_264.37,
        "seconds_per_epoch": 366.84,
        "num_train_epochs": 2.0,
        "global_step": 100,
        "best_step": 50,
        "features_runtime": 0.1234,
        "features_runtime_from_nothing": 92.0,
        "peak_device_memory_bytes": 9_663_676_416,
        "peak_host_memory_bytes": 3_328_599_654,
        "peak_host_memory_bytes_of_features": 4_939_212_390,
        "train_accuracy": 0.9121,
        "train_validation_gap": 0.0313,
        "energy_kwh": 0.2468,
        "hardware": {
            "device": "NVIDIA H100",
            "count": 2,
            "cpu": "Xeon",
            "cores": 16,
            "memory_bytes": 137_438_953_472,
        },
        "versions": {"python": "3.11.2", "torch": "2.14.1"},
        "commit": "0123abc",
        "seed": 42,
        "precision": "bf16",
        "launch_command": "hf-cifar train vit_base_16/lora --learning_rate 3e-3",
        "recipe": {
            "method": "lora",
            "learning_rate": 3e-3,
            "hub_model_id": None,
            "seed": 0,
            "lora_r": 8,
        },
        "history": history,
        "test_flip_accuracy": 0.9233,
        "test_nll_before_temperature": 0.4321,
        "test_ece_before_temperature": 0.0513,
        "temperature": 1.3125,
        "adapter": True,
        "lora": {"r": 8, "alpha": 16, "target": ["q_proj", "v_proj"]},
        "license": "apache-2.0",
        "hub_model_id": "someone/my_run",
        "knn_accuracy": 0.8475,
        "probe_strength": 0.01,
        "probe_scores": [
            {"strength": 0.1, "nll": 0.4125, "accuracy": 0.8625},
            {"strength": 0.01, "nll": 0.3375, "accuracy": 0.8875},
        ],
        "warnings": ["The made-up run is no run."],
        "test_accuracy_seeds": [0.921, 0.925, 0.917],
    }
    return metrics, labels, probabilities


METRICS, TRUE, PROBABILITIES = _made_up_run()


def pictures(rows: Any) -> list[np.ndarray]:
    """Return a picture of 32 x 32 pixels for each row, in its own colour."""
    return [np.full((32, 32, 3), (row % 256, row // 2 % 256, 90), np.uint8) for row in rows]


def card_of(folder: Path, metrics: dict[str, Any]) -> str:
    """Write metrics.json and the card into a folder, and return the card."""
    folder.mkdir(exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    write_card(folder)
    return (folder / "README.md").read_text(encoding="utf-8")
