"""Linear heads trained side by side on frozen features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.trainer_utils import EvalPrediction


class FeatureBatches(torch.utils.data.Dataset):
    """Whole batches of features by index. A ticket is epoch * n + index; epoch e uses view e modulo
    their number.

    values: [views, n, ...]. labels: int64 [n].
    """

    def __init__(self, values: np.ndarray, labels: np.ndarray) -> None:
        self.values, self.labels = values, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, tickets: list[int]) -> dict[str, torch.Tensor]:
        epoch, index = np.divmod(np.asarray(tickets), len(self))
        values = np.asarray(self.values[epoch % len(self.values), index])
        return {
            "features": torch.from_numpy(values),
            "labels": torch.from_numpy(self.labels[index]),
        }

    def model_inputs(
        self, batch: dict[str, torch.Tensor], device: torch.device
    ) -> dict[str, torch.Tensor]:
        """The batch as it is, on `device`."""
        return {k: v.to(device, non_blocking=True) for k, v in batch.items()}


class LinearHeads(nn.Module):
    """K linear classifiers over the same features, trained side by side, each with its own learning
    rate and weight decay (as DINOv2's linear evaluation does). Features are standardised by the
    train set's mean and deviation, which fold into the one linear layer that the model is saved
    with.

    mean, std: float32 [D].
    """

    main_input_name = "features"
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: torch.Tensor, std: torch.Tensor, classes: int, count: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        linears = [nn.Linear(len(mean), classes) for _ in range(count)]
        for linear in linears:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.heads = nn.ModuleList(linears)

    def forward(self, features: torch.Tensor) -> ImageClassifierOutput:
        """float32 [B, D] -> logits [B, K, C]."""
        x = (features - self.mean) / self.std
        linears: Any = self.heads
        weight = torch.stack([h.weight for h in linears])
        bias = torch.stack([h.bias for h in linears])
        return ImageClassifierOutput(logits=torch.einsum("bd,kcd->bkc", x, weight) + bias)

    def write_into(self, linear: nn.Linear, k: int) -> None:
        """Put head k, standardisation folded in, into the model's own classifier."""
        with torch.no_grad():
            chosen: Any = self.heads[k]
            weight = chosen.weight / self.std
            linear.weight.copy_(weight)
            linear.bias.copy_(chosen.bias - weight @ self.mean)


def best_of(logits: np.ndarray, labels: np.ndarray, metric: str | None) -> tuple[int, list[float]]:
    """The best of K heads by `metric_for_best_model` (nll or loss, else accuracy and then nll), and
    every head's accuracy.

    logits: [n, K, C]; labels: int64 [n].
    """
    log_p = torch.from_numpy(logits).double().log_softmax(-1)
    truth = torch.from_numpy(labels)
    hits = (log_p.argmax(-1) == truth[:, None]).double().mean(0).tolist()
    nll = -log_p.gather(-1, truth[:, None, None].expand(-1, log_p.shape[1], 1)).squeeze(-1).mean(0)
    order = [
        (-loss,) if metric in ("nll", "loss") else (hit, -loss)
        for hit, loss in zip(hits, nll.tolist(), strict=True)
    ]
    return max(range(len(order)), key=order.__getitem__), hits


def head_metrics(
    metrics: Callable[[EvalPrediction], dict[str, float]],
    metric: str | None,
    prediction: EvalPrediction,
) -> dict[str, float]:
    """The Trainer's metrics of the head that is best on these labels."""
    logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    best, _ = best_of(logits, labels, metric)
    return metrics(EvalPrediction(logits[:, best], labels)) | {"best_head": float(best)}
