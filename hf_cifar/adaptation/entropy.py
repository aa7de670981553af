"""Adaptation by surer answers: scales and shifts of norms follow the gradient of the entropy.

TENT (Wang et al. 2021) follows that of every image. SAR (Niu et al. 2023) leaves out images whose
answer is unsure, looks for flat minima, and starts again where it has collapsed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from hf_cifar.adaptation.base import Adaptation, Batches, Settings
from hf_cifar.adaptation.batch_norm import adapt_statistics
from hf_cifar.adaptation.norms import batch_norms, batch_statistics, norm_parameters

MARGIN = 0.4  # of the largest entropy: answers above it are left out (SAR's and EATA's)
RADIUS = 0.05  # of SAR's search for sharpness
COLLAPSED = 0.2  # nats: SAR starts again where the mean entropy has fallen below
MEMORY = 0.9  # of SAR's mean entropy over the batches, and of EATA's mean answer


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Return the entropy of each answer in nats, float32 [B], of logits [B, C]."""
    log = logits.float().log_softmax(-1)
    return -(log.exp() * log).sum(-1)


class Tent(Adaptation):
    """Scales and shifts of all norms train to lower the entropy of the answers; batch norms use the
    statistics of the batch.
    """

    description: ClassVar[str] = "by TENT (Wang et al. 2021)"
    learning_rate: ClassVar[float] = 1e-3  # the paper's for CIFAR-10 with Adam

    def __init__(self, model: Any, settings: Settings) -> None:
        super().__init__(model, settings)
        self.parameters = norm_parameters(model)
        self.optimizer = self._optimizer()

    def check(self, model: Any) -> None:
        norm_parameters(model)

    def _optimizer(self) -> torch.optim.Optimizer:
        rate = self.settings.learning_rate or self.learning_rate
        return torch.optim.Adam(self.parameters, lr=rate)

    def reset(self) -> None:
        super().reset()
        self.optimizer = self._optimizer()

    def step(self, pixels: torch.Tensor) -> torch.Tensor:
        with self.training_norms():
            return self._learn(pixels)

    @contextmanager
    def training_norms(self) -> Iterator[None]:
        """Let scales and shifts have gradients, and batch norms use each batch's statistics, while
        the block runs; the gradients end with it.
        """
        with torch.enable_grad(), batch_statistics(self.model):
            for parameter in self.parameters:
                parameter.requires_grad_(True)
            try:
                yield
            finally:
                self.optimizer.zero_grad(set_to_none=True)
                for parameter in self.parameters:
                    parameter.requires_grad_(False)

    def _learn(self, pixels: torch.Tensor) -> torch.Tensor:
        logits = self.model(pixel_values=pixels).logits
        entropy(logits).mean().backward()
        self.optimizer.step()
        return logits.detach()

    def finish(self, target: Batches) -> None:
        """Give batch norms the statistics of the target under the new scales and shifts."""
        if batch_norms(self.model):
            adapt_statistics(self.model, target, prior=0.0)


class Sar(Tent):
    """TENT without unsure answers, with a step that looks for flat minima, and with a new start
    where the answers have collapsed.
    """

    description: ClassVar[str] = "by SAR (Niu et al. 2023)"

    def __init__(self, model: Any, settings: Settings) -> None:
        super().__init__(model, settings)
        self.mean_entropy: float | None = None

    def reset(self) -> None:
        super().reset()
        self.mean_entropy = None

    def _learn(self, pixels: torch.Tensor) -> torch.Tensor:
        logits = self.model(pixel_values=pixels).logits
        margin = MARGIN * math.log(logits.shape[-1])
        values = entropy(logits)
        sure = values.detach() < margin
        if not sure.any():
            return logits.detach()
        values[sure].mean().backward()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        length = torch.stack([g.norm() for g in gradients]).norm()
        moves = []
        with torch.no_grad():
            for parameter in self.parameters:
                move = torch.zeros_like(parameter)
                if parameter.grad is not None:
                    move = parameter.grad * (RADIUS / (length + 1e-12))
                parameter.add_(move)
                moves.append(move)
        self.optimizer.zero_grad(set_to_none=True)
        near = entropy(self.model(pixel_values=pixels).logits)[sure]
        still_sure = near.detach() < margin
        if still_sure.any():
            loss = near[still_sure].mean()
            loss.backward()
        with torch.no_grad():
            for parameter, move in zip(self.parameters, moves, strict=True):
                parameter.sub_(move)
        if still_sure.any():
            self.optimizer.step()
            value = float(loss.detach())
            old = self.mean_entropy
            self.mean_entropy = value if old is None else MEMORY * old + (1 - MEMORY) * value
            if self.mean_entropy < COLLAPSED:
                self.reset()
        return logits.detach()
