"""Adaptation as batches come, scored as it goes: each batch is answered when it comes."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch

from hf_cifar.adaptation.answers import batches, information
from hf_cifar.adaptation.base import Adaptation
from hf_cifar.adaptation.norms import batch_norms, batch_statistics
from hf_cifar.data.splits import Split
from hf_cifar.evaluation.classifier import Classifier


@dataclass(frozen=True)
class Stream:
    """Answers to a stream: float64 [n, C] of the model as it was and of the adapting one.

    refused: batches that the guard answered with the model as it was.
    """

    before: np.ndarray
    after: np.ndarray
    refused: int
    batches: int


def run_stream(
    classifier: Classifier,
    adaptation: Adaptation,
    split: Split,
    size: int,
    *,
    reset: bool,
    threshold: float | None,
) -> Stream:
    """Return the answers to the images of a split in their order.

    reset: start from the model as it was at every batch (the episodic form). threshold: of
    `guard.information_threshold`; batches below it are answered by the model as it was, and change
    nothing. None: no guard. Where there are batch norms, batches of one image are answered so too.
    """
    frozen = copy.deepcopy(classifier.model)
    before, after, refused, count = [], [], 0, 0
    for pixels in batches(classifier, split, size):
        count += 1
        with torch.no_grad():
            plain = _probabilities(frozen(pixel_values=pixels).logits)
            # A batch norm has no statistics of one image, which the last batch may be.
            trusted = len(pixels) > 1 or not batch_norms(frozen)
            if trusted and threshold is not None:
                trusted = _is_mixed(frozen, pixels, threshold)
        answers = plain
        if trusted:
            answers = _probabilities(adaptation.step(pixels))
            if reset:
                adaptation.reset()
        refused += not trusted
        before.append(plain)
        after.append(answers)
    return Stream(np.concatenate(before), np.concatenate(after), refused, count)


def _is_mixed(model: torch.nn.Module, pixels: torch.Tensor, threshold: float) -> bool:
    """Return whether a batch seems to hold many classes; always true without batch norms."""
    if not batch_norms(model):
        return True
    with batch_statistics(model):
        logits = model(pixel_values=pixels).logits
    return information(_probabilities(logits)) >= threshold


def _probabilities(logits: torch.Tensor) -> np.ndarray:
    return logits.double().softmax(-1).cpu().numpy()
