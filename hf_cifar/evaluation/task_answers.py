"""The answers of a model of several tasks: all of them from one forward pass."""

from __future__ import annotations

from typing import Any

import torch

from hf_cifar.evaluation.classifier import Classifier, check_logits
from hf_cifar.models.task_heads import task_columns


@torch.inference_mode()
def answer_tasks(
    classifier: Classifier, pixels: torch.Tensor, top: int, name: str
) -> dict[str, list[dict[str, Any]]]:
    """Return for each task the best answers to a picture, [{label, score}, ...], the best first.

    pixels: float32 [1, 3, S, S] on the classifier's device. top: how many classes are named.
    name: of the picture. Raises UserError for logits that are not finite.
    """
    logits = classifier.model(pixel_values=pixels).logits[0].float().cpu()
    check_logits(classifier, logits.isfinite().all()[None], name)
    answers = {}
    for task, columns in task_columns(classifier.tasks).items():
        labels = classifier.tasks[task]
        best = logits[columns].softmax(-1).topk(min(top, len(labels)))
        answers[task] = [
            {"label": labels[number], "score": score}
            for score, number in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
    return answers
