"""What trains when: the head first and then everything (LP-FT), or one more block from the top at a
time (ULMFiT).
"""

from __future__ import annotations

import logging
from typing import Any

from torch import nn
from transformers import TrainerCallback

from hf_cifar.methods.trainable import from_block
from hf_cifar.models.structure import blocks, head
from hf_cifar.recipe.fields import MethodKeys

log = logging.getLogger(__name__)


class UnfreezeSchedule(TrainerCallback):
    """Sets `requires_grad` before each step, by nothing but the epoch, so that a resumed run
    freezes what the run did.

    What the method trains is what is trainable when this is made; the optimizer holds all of it
    from the start, and what is still frozen has no gradient, so that no step, no decay and no
    moment touches it.

    head_epochs: until then the head alone, after that everything (Kumar et al. 2022, arXiv
    2202.10054).
    unfreeze_every: stage k, from epoch k * unfreeze_every on, trains the head and the last k blocks
    with what follows them; past the first block, also what comes before it (Howard and Ruder 2018,
    arXiv 1801.06146, section 3.3).
    """

    def __init__(self, model: nn.Module, keys: MethodKeys) -> None:
        self.model, self.head_epochs, self.unfreeze_every = (
            model,
            keys.head_epochs,
            keys.unfreeze_every,
        )
        self.count = len(blocks(model))
        own = head(model)[0] + "."
        self.trains = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.head = {name for name in self.trains if name.startswith(own)}
        self.stage = -1

    def stage_at(self, epoch: float) -> int:
        """How many of the last blocks train from `epoch` on; one more than there are stands for
        everything.
        """
        epoch += 1e-9  # epochs are fractions of steps: 2/3 + 1/3
        if self.head_epochs:
            return self.count + 1 if epoch >= self.head_epochs else 0
        return min(int(epoch / self.unfreeze_every), self.count + 1)

    def names(self, stage: int) -> set[str]:
        """Names of the parameters that train in a stage."""
        if stage > self.count:
            return set(self.trains)
        return self.head | (
            set(from_block(self.model, self.count - stage)) & self.trains.keys() if stage else set()
        )

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        stage = self.stage_at(state.epoch or 0.0)
        if stage == self.stage:
            return
        self.stage, chosen = stage, self.names(stage)
        for name, parameter in self.trains.items():
            parameter.requires_grad_(name in chosen)
        count = sum(self.trains[name].numel() for name in chosen)
        what = (
            "everything"
            if stage > self.count
            else f"the head and the last {stage} blocks"
            if stage
            else "the head"
        )
        log.info("epoch %.4g: %s: %s parameters train", state.epoch or 0.0, what, f"{count:,}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for parameter in self.trains.values():
            parameter.requires_grad_(True)
