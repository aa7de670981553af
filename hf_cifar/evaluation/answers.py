"""A classifier's answers to batches of pictures: its best classes, or "none of these"."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from hf_cifar.evaluation.classifier import Classifier
from hf_cifar.evaluation.known_pictures import read_known
from hf_cifar.evaluation.operating_point import OperatingPoint, read_operating_point
from hf_cifar.evaluation.reject import NONE_OF_THESE, Rejecter
from hf_cifar.models.structure import head
from hf_cifar.training.precision import Precision, set_weight_layout


class Answer(NamedTuple):
    """The answer of a model to one picture.

    labels: [{label, score}, ...], the best first. none_of_these: whether it is none of the classes,
    which then comes first; None for a model without a threshold.
    """

    labels: list[dict[str, Any]]
    none_of_these: bool | None

    def columns(self) -> dict[str, Any]:
        """Return what a file of answers says of the picture, by its columns."""
        return self.labels[0] | {"labels": self.labels, "none_of_these": self.none_of_these}


class Answerer:
    """Gives the answers of `pipeline`. Where `hf-cifar calibrate` has chosen a threshold for the
    model, the answer "none of these" comes first for a picture below it; its score is the share of
    validation pictures that look more like the classes. Where the run has chosen a threshold for
    its positive class (`OperatingPoint`), the class that this decides for comes before the other.

    top: how many classes are named.
    """

    def __init__(self, classifier: Classifier, top: int, precision: Precision) -> None:
        """Raises UserError where the model's known pictures or its thresholds are damaged."""
        self._classifier, self._top, self._precision = classifier, top, precision
        where = f"{classifier.files.name}: config.json"
        self._point = read_operating_point(classifier.model.config, classifier.labels, where)
        set_weight_layout(classifier.model, classifier.device, precision.channels_last)
        known = read_known(classifier)
        self._rejecter = Rejecter(known) if known is not None and known.reject is not None else None
        self._features = torch.empty(0)  # what the head was given for the newest batch
        if self._rejecter is not None:
            _, linear = head(classifier.model)
            linear.register_forward_pre_hook(self._keep_features)

    def _keep_features(self, _: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self._features = inputs[0].detach().float().cpu()

    @torch.inference_mode()
    def answer(self, pixels: torch.Tensor) -> list[Answer | None]:
        """Return the answer to each picture, or None where the model's outputs are not finite.

        pixels: float32 [B, 3, S, S] on the classifier's device, as its processor makes them.
        """
        classifier, (bf16, channels_last) = self._classifier, self._precision
        if channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast(classifier.device.type, torch.bfloat16, enabled=bf16):
            logits = classifier.model(pixel_values=pixels).logits.float().cpu()
        named = min(self._top, logits.shape[1]) if self._point is None else logits.shape[1]
        best = classifier.scores(logits).topk(named)
        finite = logits.isfinite().all(-1).tolist()
        is_stranger, strangeness = None, None
        if self._rejecter is not None:
            is_stranger, strangeness = self._rejecter.judge(self._features)
        answers: list[Answer | None] = []
        for row, scores in enumerate(best.values.tolist()):
            labels = [
                {"label": classifier.labels[number], "score": score}
                for score, number in zip(scores, best.indices[row].tolist(), strict=True)
            ]
            if self._point is not None:
                labels = _decided_first(labels, self._point)[: self._top]
            rejected = None if is_stranger is None else bool(is_stranger[row])
            if rejected and strangeness is not None:
                labels.insert(0, {"label": NONE_OF_THESE, "score": float(strangeness[row])})
            answers.append(Answer(labels, rejected) if finite[row] else None)
        return answers


def _decided_first(labels: list[dict[str, Any]], point: OperatingPoint) -> list[dict[str, Any]]:
    """Return the answers of a two-class model with the class that the threshold decides for first.

    labels: [{label, score}, ...] of both classes.
    """
    (positive,) = (answer for answer in labels if answer["label"] == point.positive_class)
    rest = [answer for answer in labels if answer is not positive]
    return [positive, *rest] if positive["score"] >= point.threshold else [*rest, positive]
