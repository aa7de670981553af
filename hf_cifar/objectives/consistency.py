"""The Jensen-Shannon consistency of a model's answers to several views of an image (AugMix)."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F


def jensen_shannon(logits: torch.Tensor) -> torch.Tensor:
    """Return the sum over images of the Jensen-Shannon divergence of their views' answers, in nats:
    the mean over the views of the divergence of an answer from the mean answer.

    logits: float32 [views, B, C].
    """
    answers = logits.log_softmax(-1)
    mean = answers.logsumexp(0) - math.log(len(answers))
    mean = mean.expand_as(answers)
    return F.kl_div(mean, answers, reduction="sum", log_target=True) / len(answers)
