"""The exponential moving average of the weights, which is evaluated and saved in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

FILE = "ema.safetensors"


class WeightAverage(TrainerCallback):
    """After each step: average = decay * average + (1 - decay) * weights (Polyak and Juditsky 1992;
    Tarvainen and Valpola 2017), starting from the weights before the first step.

    Averages the parameters that train and the running statistics of batch norms. The model must be
    on its device already: `Module.to` replaces buffers, and this holds the tensors themselves.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        tensors: dict[str, torch.Tensor] = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        tensors |= {
            name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()
        }
        self.names, self.tensors = list(tensors), list(tensors.values())
        self.average = [tensor.detach().clone() for tensor in self.tensors]

    def _weights(self) -> list[torch.Tensor]:
        return [tensor.detach() for tensor in self.tensors]

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch._foreach_lerp_(self.average, self._weights(), 1 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their average."""
        weights = [tensor.clone() for tensor in self._weights()]
        torch._foreach_copy_(self._weights(), self.average)
        torch._foreach_copy_(self.average, weights)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the average for its weights while the block runs."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def save(self, folder: Path) -> None:
        """Write ema.safetensors, under the names that the weights have in memory."""
        named = dict(zip(self.names, self.average, strict=True))
        tensors = {name: tensor.cpu().contiguous() for name, tensor in named.items()}
        save_file(tensors, folder / FILE)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        saved = load_file(folder / FILE)
        for name, tensor in zip(self.names, self.average, strict=True):
            tensor.copy_(saved[name])
