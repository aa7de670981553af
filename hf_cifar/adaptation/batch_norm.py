"""Batch-norm statistics of the target in place of the source's (Schneider et al. 2020)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from hf_cifar.adaptation.base import Adaptation, Batches
from hf_cifar.adaptation.norms import (
    batch_norms,
    batch_statistics,
    mean_and_variance,
    watch_inputs,
)
from hf_cifar.errors import UserError


class BatchNormStatistics(Adaptation):
    """Normalises by a mean of the source's statistics, which count for `prior` images, and the
    target's, which count for the number of its images. No weight trains.
    """

    description: ClassVar[str] = "by batch-norm statistics (Schneider et al. 2020)"

    def check(self, model: Any) -> None:
        if not batch_norms(model):
            raise UserError(
                f"--adaptation batch_norm: {type(model).__name__} has no batch norms; use tent,"
                " which adapts layer norms too"
            )

    @torch.no_grad()
    def step(self, pixels: torch.Tensor) -> torch.Tensor:
        layers = batch_norms(self.model)
        held = {
            layer: (layer.running_mean.clone(), layer.running_var.clone())  # type: ignore[union-attr]
            for layer in layers
        }

        def blend_in(layer: Any, values: torch.Tensor) -> None:
            # The layer normalises by what it holds, so the blend is put there for this batch.
            mean, variance = mean_and_variance(values)
            set_statistics(layer, *blended(held[layer], mean, variance, len(values), self.prior))

        with watch_inputs(layers, blend_in):
            logits = self.model(pixel_values=pixels).logits
        for layer, (mean, variance) in held.items():
            set_statistics(layer, mean, variance)
        return logits

    @property
    def prior(self) -> float:
        return self.settings.prior

    def finish(self, target: Batches) -> None:
        adapt_statistics(self.model, target, self.prior)


@torch.no_grad()
def adapt_statistics(model: Any, target: Batches, prior: float) -> None:
    """Replace the statistics of all batch norms by those of the target's images, blended with
    those that they hold, which count for `prior` images.

    Each batch is normalised by its own statistics on its way, so that a layer sees inputs like
    those it will see afterwards. Its mean and variance are those of all images together.
    """
    layers = batch_norms(model)
    sums: dict[Any, list[torch.Tensor]] = {}
    images = 0

    def add(layer: Any, values: torch.Tensor) -> None:
        mean, variance = (part.double() for part in mean_and_variance(values))
        weighed = [len(values) * mean, len(values) * (variance + mean**2)]
        before = sums.get(layer, [torch.zeros_like(part) for part in weighed])
        sums[layer] = [old + new for old, new in zip(before, weighed, strict=True)]

    with batch_statistics(model), watch_inputs(layers, add):
        for pixels in target():
            model(pixel_values=pixels)
            images += len(pixels)
    for layer in layers:
        mean = sums[layer][0] / images
        variance = (sums[layer][1] / images - mean**2).clamp(min=0)
        held = layer.running_mean.double(), layer.running_var.double()  # type: ignore[union-attr]
        set_statistics(layer, *blended(held, mean, variance, images, prior))


def blended(
    held: tuple[torch.Tensor, torch.Tensor],
    mean: torch.Tensor,
    variance: torch.Tensor,
    images: int,
    prior: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance that are those held with weight N / (N + n), and the new ones with
    weight n / (N + n). images: n. prior: N.
    """
    share = images / (images + prior)
    return tuple(  # type: ignore[return-value]
        (1 - share) * old + share * new for old, new in zip(held, (mean, variance), strict=True)
    )


def set_statistics(layer: Any, mean: torch.Tensor, variance: torch.Tensor) -> None:
    """Write statistics into a batch norm."""
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(variance)
