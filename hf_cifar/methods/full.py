"""Full fine-tuning: every weight trains, but for groups that the recipe freezes."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from hf_cifar.methods.base import Learner, Method, Setup
from hf_cifar.methods.gradient_learner import GradientLearner
from hf_cifar.methods.trainable import keep_frozen_norms_in_eval_mode, set_group_trains


class Full(Method):
    """Every weight trains, but for `freeze_groups`."""

    description: ClassVar[str] = "with all of its weights fine-tuned"

    def prepare(self, model: nn.Module) -> nn.Module:
        model.requires_grad_(True)
        for group in self.recipe.freeze_groups or ():
            set_group_trains(model, group, trains=False, key="freeze_groups")
        keep_frozen_norms_in_eval_mode(model)
        return model

    def learner(self, setup: Setup) -> Learner:
        return GradientLearner(setup)
