"""The answers of a model of several tasks: all of them from one forward pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from hf_cifar.evaluation.classifier import Classifier
from hf_cifar.models.task_heads import task_columns
from hf_cifar.training.precision import Precision, set_weight_layout


class TaskAnswers(NamedTuple):
    """The answers of a model to one picture.

    labels: for each task by its name [{label, score}, ...], the best first.
    """

    labels: dict[str, list[dict[str, Any]]]

    def columns(self) -> dict[str, Any]:
        """Return what a file of answers says of the picture, by its columns."""
        return {
            f"{name}_{task}": value
            for task, labels in self.labels.items()
            for name, value in (labels[0] | {"labels": labels}).items()
        }


class TaskAnswerer:
    """Gives for each task the answers of `pipeline` with its folder.

    top: how many classes of each task are named.
    """

    def __init__(self, classifier: Classifier, top: int, precision: Precision) -> None:
        self._classifier, self._top, self._precision = classifier, top, precision
        self._columns = task_columns(classifier.tasks)
        set_weight_layout(classifier.model, classifier.device, precision.channels_last)

    @torch.inference_mode()
    def answer(self, pixels: torch.Tensor) -> list[TaskAnswers | None]:
        """Return the answers to each picture, or None where the model's outputs are not finite.

        pixels: float32 [B, 3, S, S] on the classifier's device, as its processor makes them.
        """
        bf16, channels_last = self._precision
        if channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._classifier.device.type, torch.bfloat16, enabled=bf16):
            logits = self._classifier.model(pixel_values=pixels).logits.float().cpu()
        answers = [TaskAnswers({}) for _ in logits]
        for task, columns in self._columns.items():
            labels = self._classifier.tasks[task]
            best = logits[:, columns].softmax(-1).topk(min(self._top, len(labels)))
            rows = zip(answers, best.values.tolist(), best.indices.tolist(), strict=True)
            for answer, scores, numbers in rows:
                answer.labels[task] = [
                    {"label": labels[number], "score": score}
                    for score, number in zip(scores, numbers, strict=True)
                ]
        finite = logits.isfinite().all(-1).tolist()
        return [answer if fine else None for answer, fine in zip(answers, finite, strict=True)]
