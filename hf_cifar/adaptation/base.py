"""An adaptation: how a finished model changes as unlabelled images of a new place come in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

Batches = Callable[[], Iterable[torch.Tensor]]  # gives pixel values [B, 3, S, S], anew at each call


@dataclass(frozen=True)
class Settings:
    """learning_rate: None for the method's own. prior: how many images the source's batch-norm
    statistics count for (Schneider et al. 2020, N). epochs: passes over the target.
    """

    learning_rate: float | None = None
    prior: float = 16.0
    epochs: int = 1


class Adaptation(ABC):
    """Changes a model in place.

    description: how a card says it, after the name of the target. needs_source: whether it takes
    images of the source, for `prepare`.
    """

    description: ClassVar[str]
    needs_source: ClassVar[bool] = False

    def __init__(self, model: Any, settings: Settings) -> None:
        """Get the model ready; it stays as it is until the first `step`.

        Raises UserError for a model that has nothing to adapt.
        """
        self.model, self.settings = model, settings
        self.check(model)
        self._start = {name: value.clone() for name, value in model.state_dict().items()}

    def check(self, model: Any) -> None:
        """Raise UserError for a model that has nothing to adapt."""

    def prepare(self, source: Batches) -> None:
        """Remember what the method needs of the source's images."""

    @abstractmethod
    def step(self, pixels: torch.Tensor) -> torch.Tensor:
        """Adapt to a batch, and return its logits [B, C] as the method answers while it adapts.

        pixels: float32 [B, 3, S, S] on the model's device.
        """

    @abstractmethod
    def finish(self, target: Batches) -> None:
        """Leave the model, after the steps, so that it answers by itself, in evaluation mode."""

    def reset(self) -> None:
        """Bring the model back to where it started, to the bit."""
        self.restore(self._start)

    def snapshot(self) -> dict[str, torch.Tensor]:
        """Return a copy of the model's weights and statistics."""
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Bring the model to a state that `snapshot` gave."""
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                value.copy_(state[name])
