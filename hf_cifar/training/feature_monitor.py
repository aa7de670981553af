"""How good features are while a model trains: forgetting and collapse are seen before the test."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize
from transformers import EvalPrediction, TrainerCallback

log = logging.getLogger(__name__)
NEIGHBOURS = 20
FALL = 0.03  # of the nearest neighbours' accuracy below its best, from which a warning is given
RANK_FALL = 0.5  # of the effective rank, as a part of its best; with a fall of the separation
SEPARATION_FALL = 0.05


class FeatureMonitor(TrainerCallback):
    """Watches what the head is given for the validation images at each evaluation.

    The measures join the evaluation's metrics, and so the log, metrics.json and every report.
    """

    def __init__(self, head: nn.Module) -> None:
        self.head = head
        self.pretrained: np.ndarray | None = None
        self.batches: list[np.ndarray] = []
        self.warnings: list[str] = []
        self.active = False

    def start(self, pretrained: np.ndarray) -> None:
        """Begin to watch. pretrained: float32 [n, D], the validation images' features before
        training.
        """
        self.pretrained, self.active = pretrained, True
        self.hook = self.head.register_forward_pre_hook(self._collect)

    def stop(self) -> None:
        """End watching."""
        if self.active:
            self.hook.remove()
        self.active = False

    def _collect(self, module: nn.Module, args: tuple) -> None:
        if not module.training:
            self.batches.append(args[0].detach().float().cpu().numpy())

    def with_features(
        self, compute_metrics: Callable[[EvalPrediction], dict[str, float]]
    ) -> Callable[[EvalPrediction], dict[str, float]]:
        """Return `compute_metrics` with the measures of the features beside its own."""

        def compute(prediction: EvalPrediction) -> dict[str, float]:
            metrics = compute_metrics(prediction)
            features, self.batches = self.batches, []
            if self.active and features and self.pretrained is not None:
                labels = np.asarray(prediction.label_ids)
                metrics |= measures(np.concatenate(features), labels, self.pretrained)
            return metrics

        return compute

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Warn where features have begun to be much worse than the best so far, or fall further."""
        if not self.active:
            return
        if (warning := fall(state.log_history)) and is_news(state.log_history):
            self.warnings.append(warning)
            log.warning("%s", warning)


def fall(history: list[dict[str, Any]]) -> str | None:
    """Return a warning about the latest evaluation of a Trainer's `log_history`, or None."""
    entries = [entry for entry in history if "eval_knn_accuracy" in entry]
    if len(entries) < 2:
        return None
    *before, last = entries

    def best(name: str) -> float:
        return max(entry[f"eval_{name}"] for entry in before)

    step, knn = last.get("step"), last["eval_knn_accuracy"]
    if knn < best("knn_accuracy") - FALL:
        return (
            f"features: at step {step} their nearest neighbours are right for {knn:.1%} of the"
            f" validation images, {best('knn_accuracy'):.1%} before; a lower learning_rate forgets"
            " less"
        )
    rank, separation = last["eval_effective_rank"], last["eval_class_separation"]
    if rank < RANK_FALL * best("effective_rank") and (
        separation < best("class_separation") - SEPARATION_FALL
    ):
        return (
            f"features: at step {step} they collapse: effective rank {rank:.1f},"
            f" {best('effective_rank'):.1f} before, and the classes lie closer together; lower"
            " learning_rate"
        )
    return None


def is_news(history: list[dict[str, Any]]) -> bool:
    """Return whether the fall at the latest evaluation has just begun, or goes far below all
    evaluations before it.
    """
    entries = [entry for entry in history if "eval_knn_accuracy" in entry]
    *before, last = entries
    lowest = {
        name: min(entry[name] for entry in before)
        for name in ("eval_knn_accuracy", "eval_effective_rank")
    }
    return (
        fall(before) is None
        or last["eval_knn_accuracy"] < lowest["eval_knn_accuracy"] - FALL
        or last["eval_effective_rank"] < RANK_FALL * lowest["eval_effective_rank"]
    )


def measures(features: np.ndarray, labels: np.ndarray, pretrained: np.ndarray) -> dict[str, float]:
    """Return measures of features, float32 [n, D].

    knn_accuracy: of 20 neighbours by cosine among the other images. effective_rank: exp of the
    entropy of the singular values (RankMe, Garrido et al. 2023). class_separation: 1 - mean cosine
    distance within classes / over all pairs (Kornblith et al. 2021). cka: likeness to the
    pretrained features, 1 where one is a rotation and scaling of the other (linear CKA, Kornblith
    et al. 2019).

    labels: int64 [n]. pretrained: float32 [n, D'].
    """
    values, before = (torch.from_numpy(np.array(side)).double() for side in (features, pretrained))
    classes = torch.from_numpy(labels)
    directions = normalize(values, dim=1)
    cosines = directions @ directions.T
    same = classes[:, None] == classes[None]
    apart = ~torch.eye(len(classes), dtype=torch.bool)
    within = (1 - cosines)[same & apart].mean() if (same & apart).any() else torch.tensor(0.0)
    overall = (1 - cosines)[apart].mean().clamp(min=1e-12)
    others = cosines.masked_fill(~apart, -torch.inf)
    count = min(NEIGHBOURS, len(classes) - 1)
    nearest = others.topk(count, dim=1)
    votes = torch.zeros(len(classes), int(classes.max()) + 1, dtype=torch.float64)
    votes.scatter_add_(1, classes[nearest.indices], (nearest.values / 0.07).exp())
    sizes = torch.linalg.svdvals(values)
    shares = (sizes / sizes.sum().clamp(min=1e-300)).clamp(min=1e-300)
    return {
        "knn_accuracy": float((votes.argmax(1) == classes).double().mean()),
        "effective_rank": float(torch.exp(-(shares * shares.log()).sum())),
        "class_separation": float(1 - within / overall),
        "cka": _cka(values, before),
    }


def _cka(first: torch.Tensor, second: torch.Tensor) -> float:
    first, second = (side - side.mean(0) for side in (first, second))
    grams = first @ first.T, second @ second.T
    product = (grams[0] * grams[1]).sum()
    return float(product / (grams[0].norm() * grams[1].norm()).clamp(min=1e-300))
