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
    """average = decay * average + (1 - decay) * weights after each step (Polyak and Juditsky 1992;
    Tarvainen and Valpola 2017), from the weights before the first; of what trains, and of the
    running statistics of batch norms.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        named: dict[str, torch.Tensor] = {
            n: p for n, p in model.named_parameters() if p.requires_grad
        }
        named |= {n: b for n, b in model.named_buffers() if b.is_floating_point()}
        self.names, self.tensors = list(named), list(named.values())
        self.average = [t.detach().clone() for t in self.tensors]

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch._foreach_lerp_(self.average, self._weights(), 1 - self.decay)

    def _weights(self) -> list[torch.Tensor]:
        return [t.detach() for t in self.tensors]

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their average."""
        kept = [t.clone() for t in self._weights()]
        torch._foreach_copy_(self._weights(), self.average)
        torch._foreach_copy_(self.average, kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Meanwhile the model has the average for its weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def save(self, folder: Path) -> None:
        """ema.safetensors, by the names that the weights have in memory."""
        named: dict[str, Any] = dict(zip(self.names, self.average, strict=True))
        save_file({n: t.cpu().contiguous() for n, t in named.items()}, folder / FILE)

    def load(self, folder: Path) -> None:
        """What `save` wrote."""
        held = load_file(folder / FILE)
        for name, tensor in zip(self.names, self.average, strict=True):
            tensor.copy_(held[name])
