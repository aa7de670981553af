"""EATA (Niu et al. 2022): TENT on the images that teach something, without forgetting the source.

Images whose answer is unsure are left out, and so are images whose answer is like the mean of those
before them. What the source's answers depend on most, by the Fisher information, is held near where
it was.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch.nn import functional as F

from hf_cifar.adaptation.base import Batches, Settings
from hf_cifar.adaptation.entropy import MARGIN, MEMORY, Tent, entropy

FISHER_WEIGHT = 1.0  # the paper's for CIFAR-10
MOMENTUM = 0.9


def redundancy_margin(classes: int) -> float:
    """Return the cosine to the mean answer from which an image is left out.

    A sure answer has a cosine of 1 / sqrt(classes) to an even mean, so that the margin shrinks with
    the classes. It is the paper's 0.4 for 10 classes and 0.05 for 1,000.
    """
    return min(1.0, max(0.05, 0.4 * math.sqrt(10 / classes)))


class Eata(Tent):
    """TENT on sure answers that differ from the mean answer, the surest weighing most, with a
    penalty for moving weights that matter on the source.
    """

    description: ClassVar[str] = "by EATA (Niu et al. 2022)"
    needs_source: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 5e-3  # the paper's for CIFAR-10 with SGD

    def __init__(self, model: torch.nn.Module, settings: Settings) -> None:
        super().__init__(model, settings)
        self.mean_answer: torch.Tensor | None = None  # float32 [C]
        self.fisher = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.anchor = [parameter.detach().clone() for parameter in self.parameters]

    def _optimizer(self) -> torch.optim.Optimizer:
        rate = self.settings.learning_rate or self.learning_rate
        return torch.optim.SGD(self.parameters, lr=rate, momentum=MOMENTUM)

    def reset(self) -> None:
        super().reset()
        self.mean_answer = None

    def prepare(self, source: Batches) -> None:
        """Work out the Fisher information of each weight: the mean over batches of the squared
        gradient of the cross-entropy, with the model's own answers as labels.
        """
        self.fisher = [torch.zeros_like(parameter) for parameter in self.parameters]
        batches = 0
        for pixels in source():
            with self.training_norms():
                logits = self.model(pixel_values=pixels).logits.float()
                F.cross_entropy(logits, logits.detach().argmax(-1)).backward()
                for total, parameter in zip(self.fisher, self.parameters, strict=True):
                    if parameter.grad is not None:
                        total += parameter.grad.square()
            batches += 1
        self.fisher = [total / max(1, batches) for total in self.fisher]

    def forgetting(self) -> torch.Tensor:
        """Return the penalty: squared moves away from the start, weighed by Fisher information."""
        parts = zip(self.fisher, self.parameters, self.anchor, strict=True)
        return torch.stack([(f * (now - start).square()).sum() for f, now, start in parts]).sum()

    def _learn(self, pixels: torch.Tensor) -> torch.Tensor:
        logits = self.model(pixel_values=pixels).logits
        classes = logits.shape[-1]
        values, answers = entropy(logits), logits.detach().float().softmax(-1)
        margin = MARGIN * math.log(classes)
        chosen = values.detach() < margin
        if self.mean_answer is not None:
            likeness = F.cosine_similarity(answers, self.mean_answer[None], dim=1)
            chosen &= likeness < redundancy_margin(classes)
        if not chosen.any():
            return logits.detach()
        new, old = answers[chosen].mean(0), self.mean_answer
        self.mean_answer = new if old is None else MEMORY * old + (1 - MEMORY) * new
        weights = (margin - values.detach()[chosen]).exp()
        loss = (weights * values[chosen]).mean() + FISHER_WEIGHT * self.forgetting()
        loss.backward()
        self.optimizer.step()
        return logits.detach()
