"""Unfreezing by schedule: first the head and then everything (LP-FT), or one more block at a time
from the top (ULMFiT).
"""

from __future__ import annotations

import logging
from typing import Any

from torch import nn
from transformers import TrainerCallback

from hf_cifar.methods.trainable import parameters_from_block
from hf_cifar.models.structure import blocks, head_name
from hf_cifar.recipe.fields import MethodKeys

log = logging.getLogger(__name__)


class UnfreezeSchedule(TrainerCallback):
    """Set `requires_grad` before each step from the epoch alone, so that a resumed run freezes what
    the run did.

    What trains when this is made is what the schedule unfreezes in the end. The optimizer holds all
    of it from the start; a frozen parameter has no gradient, so neither a step, nor decay, nor a
    moment touches it.

    head_epochs: until then the head trains alone, after that everything (Kumar et al. 2022, arXiv
    2202.10054). unfreeze_every: stage k begins at epoch k * unfreeze_every and trains the head and
    the last k blocks with what follows them; the stage past the first block also trains what comes
    before it (Howard and Ruder 2018, arXiv 1801.06146, section 3.3).
    """

    def __init__(self, model: nn.Module, keys: MethodKeys) -> None:
        self.model = model
        self.head_epochs, self.unfreeze_every = keys.head_epochs, keys.unfreeze_every
        self.block_count = len(blocks(model))
        classifier = f"{head_name(model)}."
        self.trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.head = {name for name in self.trainable if name.startswith(classifier)}
        self.stage = -1

    def stage_at(self, epoch: float) -> int:
        """Return how many of the last blocks train at `epoch`; one more than there are means
        everything.
        """
        epoch += 1e-9  # epochs are sums of fractions, such as 2/3 + 1/3
        if self.head_epochs:
            return self.block_count + 1 if epoch >= self.head_epochs else 0
        return min(int(epoch / self.unfreeze_every), self.block_count + 1)

    def names_in(self, stage: int) -> set[str]:
        """Return the names of the parameters that train in a stage."""
        if stage > self.block_count:
            return set(self.trainable)
        if stage == 0:
            return self.head
        upper = parameters_from_block(self.model, self.block_count - stage)
        return self.head | (set(upper) & self.trainable.keys())

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        stage = self.stage_at(state.epoch or 0.0)
        if stage == self.stage:
            return
        self.stage, names = stage, self.names_in(stage)
        for name, parameter in self.trainable.items():
            parameter.requires_grad_(name in names)
        count = sum(self.trainable[name].numel() for name in names)
        part = f"the head and the last {stage} blocks" if stage else "the head"
        if stage > self.block_count:
            part = "everything"
        log.info("epoch %.4g: %s trains, %s parameters", state.epoch or 0.0, part, f"{count:,}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for parameter in self.trainable.values():
            parameter.requires_grad_(True)
