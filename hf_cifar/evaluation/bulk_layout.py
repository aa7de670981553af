"""How bulk prediction computes: precision, memory layout and how many pictures at a time."""

from __future__ import annotations

import logging
from typing import Any

import torch

from hf_cifar.evaluation.classifier import Classifier
from hf_cifar.evaluation.picture_list import Pictures
from hf_cifar.evaluation.picture_reader import PictureReader, ReadPicture
from hf_cifar.features.extract import CPU_BATCH
from hf_cifar.training.precision import fastest_precision

log = logging.getLogger(__name__)
GPU_BATCH = 128
# Pictures of a batch on a CPU in float32. On one core, EfficientNet-Lite0 at 224 px gave
# probabilities within 2.4e-7 of those of single pictures in batches of 8, but 1.3e-6 in batches of
# 16 and 32, and 1.9e-6 with images channels last. ResNet-18 at 96 px needs a fifth more time in
# batches of 8 than in batches of 32: those are tried first where there are pictures enough.
EXACT_BATCH = 8
TRIED_FROM = 2_000  # pictures
SAFE_DIFFERENCE = 3e-7  # of probabilities; 1e-6 is promised


def choose_layout(classifier: Classifier, pictures: Pictures, precision: str) -> list[Any]:
    """Return whether to compute in bf16, whether with channels last, and how many pictures at a
    time.

    precision: fp32, which gives the answers of single pictures; or bf16 or auto.
    """
    on_cpu = classifier.device.type == "cpu"
    if precision == "fp32":
        exact = _exact_batch(classifier, pictures) if on_cpu else GPU_BATCH
        return [False, False, exact]
    choice, why = fastest_precision(
        classifier.model,
        classifier.transforms.image_size,
        classifier.device,
        bf16=True if precision == "bf16" else None,
    )
    log.info("precision: %s", why)
    return [*choice, CPU_BATCH if on_cpu else GPU_BATCH]


@torch.inference_mode()
def _exact_batch(classifier: Classifier, pictures: Pictures) -> int:
    """Return CPU_BATCH where so many pictures at a time get the probabilities of single pictures,
    tried on the first of them, or else EXACT_BATCH.
    """
    if len(pictures) < TRIED_FROM:
        return EXACT_BATCH
    reader = PictureReader(classifier, pictures)
    first = [reader.picture(row) for row in range(CPU_BATCH)]
    readable = [picture for picture in first if isinstance(picture, ReadPicture)]
    if len(readable) < CPU_BATCH:
        return EXACT_BATCH
    inputs = reader.inputs(readable)
    together = classifier.scores(classifier.model(pixel_values=inputs).logits)
    alone = [
        classifier.scores(classifier.model(pixel_values=image[None]).logits) for image in inputs
    ]
    difference = float((together - torch.cat(alone)).abs().max())
    return CPU_BATCH if difference <= SAFE_DIFFERENCE else EXACT_BATCH
