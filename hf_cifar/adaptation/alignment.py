"""Deep CORAL (Sun and Saenko 2016) without labels: features of the target get the mean and the
covariance that the source's features have.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from hf_cifar.adaptation.base import Batches
from hf_cifar.adaptation.entropy import Tent
from hf_cifar.models.structure import head


class Coral(Tent):
    """Scales and shifts of all norms train to bring mean and covariance of what the head is given
    to those of the source's images.
    """

    description: ClassVar[str] = "by aligned features (deep CORAL, Sun and Saenko 2016)"
    needs_source: ClassVar[bool] = True

    @torch.no_grad()
    def prepare(self, source: Batches) -> None:
        values = torch.cat([features_and_logits(self.model, pixels)[0] for pixels in source()])
        self.mean, self.covariance = moments(values)

    def _learn(self, pixels: torch.Tensor) -> torch.Tensor:
        features, logits = features_and_logits(self.model, pixels)
        mean, covariance = moments(features)
        size = features.shape[1]
        distance = (mean - self.mean).square().sum() / size
        distance = distance + (covariance - self.covariance).square().sum() / (4 * size)
        distance.backward()
        self.optimizer.step()
        return logits.detach()


def moments(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean [D] and covariance [D, D] of features [n, D]."""
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.mT @ centred / max(1, len(features) - 1)


def features_and_logits(model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the head is given, float32 [B, D], and the logits [B, C]."""
    inputs: list[torch.Tensor] = []
    _, linear = head(model)
    hook = linear.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    try:
        logits = model(pixel_values=pixels).logits
    finally:
        hook.remove()
    return inputs[0].float(), logits
