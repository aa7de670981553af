"""What a model answers for the images of a split, and the batches that it adapts to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from hf_cifar.adaptation.alignment import features_and_logits
from hf_cifar.adaptation.norms import batch_norms, batch_statistics
from hf_cifar.data.batches import ImageBatches, TicketSampler
from hf_cifar.data.splits import Split
from hf_cifar.evaluation.classifier import Classifier


@dataclass(frozen=True)
class Answers:
    """features: float32 [n, D], what the head is given. probabilities: float64 [n, C]."""

    features: np.ndarray
    probabilities: np.ndarray

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.probabilities).all())


def batches(
    classifier: Classifier, split: Split, size: int, order: np.ndarray | None = None
) -> Iterator[torch.Tensor]:
    """Yield pixel values [B, 3, S, S] on the model's device.

    order: int [m], rows of the split, cut into whole batches as far as there is one; None for all
    in their order.
    """
    images = ImageBatches(split, classifier.transforms, training=False)
    rows = np.arange(len(split)) if order is None else order
    for first in range(0, len(rows), size):
        tickets = rows[first : first + size].tolist()
        yield images.model_inputs(images.__getitems__(tickets), classifier.device)["pixel_values"]


def shuffled(split: Split, size: int, seed: int, epoch: int) -> np.ndarray:
    """Return the rows of a split in a random order, cut to whole batches; int64 [m]."""
    tickets = np.array(list(TicketSampler(len(split), seed, lambda: epoch, size)))
    return tickets % len(split)


@torch.inference_mode()
def answer(classifier: Classifier, split: Split, size: int) -> Answers:
    """Return what the model answers for all images of a split."""
    features, probabilities = [], []
    for pixels in batches(classifier, split, size):
        values, logits = features_and_logits(classifier.model, pixels)
        features.append(values.cpu())
        probabilities.append(logits.double().softmax(-1).cpu())
    return Answers(torch.cat(features).numpy(), torch.cat(probabilities).numpy())


@torch.inference_mode()
def information_by_batch(
    classifier: Classifier, split: Split, size: int, order: np.ndarray
) -> float | None:
    """Return the mean over batches of `information` for answers by each batch's own statistics, or
    None for a model without batch norms.
    """
    if not batch_norms(classifier.model):
        return None
    values = []
    with batch_statistics(classifier.model):
        for pixels in batches(classifier, split, size, order):
            logits = classifier.model(pixel_values=pixels).logits
            values.append(information(logits.double().softmax(-1).cpu().numpy()))
    return float(np.mean(values))


def information(probabilities: np.ndarray) -> float:
    """Return the mutual information of image and answer, in nats: the entropy of the mean answer
    less the mean entropy of the answers. probabilities: [n, C].
    """
    mean = probabilities.mean(0)
    return float(_entropy(mean[None])[0] - _entropy(probabilities).mean())


def effective_classes(probabilities: np.ndarray) -> float:
    """Return how many classes are predicted, the rare ones counted less: the exponential of the
    entropy of the predictions. probabilities: [n, C].
    """
    counts = np.bincount(probabilities.argmax(1), minlength=probabilities.shape[1])
    return float(np.exp(_entropy((counts / counts.sum())[None])[0]))


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    tiny = np.finfo(np.float64).tiny
    return -(probabilities * np.log(np.maximum(probabilities, tiny))).sum(1)
