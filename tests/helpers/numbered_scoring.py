"""`Trainer.predict` of a model that answers with each image's number, for sets and batches of many
sizes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import TrainingArguments

from hf_cifar.evaluation.metrics import trainer_metrics
from hf_cifar.training.trainer import CifarTrainer

BATCH_SIZES = (1, 3, 4)


class Numbers(torch.utils.data.Dataset):
    """n rows of (number, sine of the number), with labels 0 and 1 in turn."""

    def __init__(self, n: int) -> None:
        numbers = torch.arange(n)
        self.values = torch.stack([numbers, torch.sin(numbers)], dim=1)
        self.labels = (numbers % 2).numpy()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, tickets: list[int]) -> dict[str, torch.Tensor]:
        labels = torch.from_numpy(self.labels)
        return {"values": self.values[tickets], "labels": labels[tickets]}

    def model_inputs(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        return batch


class Echo(torch.nn.Module):
    """Answers with the values it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(()))

    def forward(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.factor * values}


def mean_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None
) -> torch.Tensor:
    return F.cross_entropy(outputs["logits"], labels)


def score_numbers(folder: Path) -> dict[str, np.ndarray]:
    """Return, for each batch size and number of images, the predictions, loss and NLL."""
    arguments = TrainingArguments(
        str(folder),
        use_cpu=True,
        report_to=[],
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
    )
    trainer = CifarTrainer(
        loss=mean_loss,
        parameter_groups=lambda model: [],
        forward_flops=0.0,
        image_size=1,
        keep_checkpoints=None,
        drop_last=True,
        model=Echo(),
        args=arguments,
        train_dataset=Numbers(8),
        compute_metrics=trainer_metrics,
    )
    scores = {}
    for size in BATCH_SIZES:
        arguments.per_device_eval_batch_size = size
        for n in range(1, 4 * size + 3):
            output = trainer.predict(Numbers(n))
            metrics = output.metrics
            scores[f"{size} {n}"] = np.asarray(output.predictions)
            scores[f"{size} {n} loss"] = np.array([metrics["test_loss"], metrics["test_nll"]])
    return scores
