"""Partial fine-tuning: the last blocks and the head train. What is frozen runs only once over each
image where the images stay the same.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from typing import Any, ClassVar, cast

import torch
from torch import nn

from hf_cifar.data.batches import BatchDataset, ImageBatches
from hf_cifar.data.image_cache import cache_folder
from hf_cifar.features.hidden_states import HiddenStateBatches, hidden_state_batches
from hf_cifar.features.lower_blocks import CannotCache, FrozenLowerBlocks
from hf_cifar.features.store import Cost, cost_facts, weights_fingerprint
from hf_cifar.methods.base import Learner, Method, Setup
from hf_cifar.methods.gradient_learner import GradientLearner
from hf_cifar.methods.trainable import (
    keep_frozen_norms_in_eval_mode,
    set_group_trains,
    unfreeze_last_blocks,
)
from hf_cifar.models.structure import head

log = logging.getLogger(__name__)


class Partial(Method):
    """The last `unfreeze_blocks` blocks, `unfreeze_groups` and the head train."""

    description: ClassVar[str] = "with its last blocks and its head fine-tuned"

    @property
    def views(self) -> int | None:
        return self.recipe.feature_views

    def prepare(self, model: nn.Module) -> nn.Module:
        model.requires_grad_(False)
        unfreeze_last_blocks(model, self.recipe.unfreeze_blocks)
        head(model)[1].requires_grad_(True)
        for group in self.recipe.unfreeze_groups or ():
            set_group_trains(model, group, trains=True, key="unfreeze_groups")
        for group in self.recipe.freeze_groups or ():
            set_group_trains(model, group, trains=False, key="freeze_groups")
        keep_frozen_norms_in_eval_mode(model)
        return model

    def learner(self, setup: Setup) -> Learner:
        try:
            return HiddenStateLearner.make(setup)
        except CannotCache as reason:
            log.warning("hidden states: none are cached, all blocks run at every step: %s", reason)
            return GradientLearner(setup)

    def passes(self, trainable_share: float) -> float:
        return 1.0 + 2.0 * trainable_share


class HiddenStateLearner(GradientLearner):
    """Trains from cached hidden states: what is frozen has run once over all images."""

    def __init__(
        self,
        setup: Setup,
        lower: FrozenLowerBlocks,
        train_dataset: HiddenStateBatches,
        evaluation: dict[str, BatchDataset],
        seconds: float,
        costs: list[Cost | None],
    ) -> None:
        super().__init__(setup, train_dataset, evaluation)
        self.lower = lower
        self.feature_seconds, self.costs = seconds, costs

    @classmethod
    def make(cls, setup: Setup) -> HiddenStateLearner:
        """Compute the hidden states of every dataset and let the model begin at the first block
        that trains. Raises CannotCache where that is not the same as training on images.
        """
        recipe, arguments, start = setup.recipe, setup.arguments, time.perf_counter()
        if recipe.mixup_alpha or recipe.cutmix_alpha or recipe.image_size_schedule:
            raise CannotCache("training images are mixed or change their size")
        if not isinstance(setup.datasets.train, ImageBatches):
            raise CannotCache(f"`objective: {recipe.objective}` makes batches of its own")
        augmented = (
            recipe.random_resized_crop_scale
            or recipe.horizontal_flip
            or recipe.auto_augment
            or recipe.random_erasing
        )
        if augmented and recipe.feature_views is None:
            raise CannotCache(
                "training images are augmented anew at every epoch (`feature_views` fixes their"
                " number)"
            )
        train = setup.datasets.train
        autocast = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None
        lower = FrozenLowerBlocks(
            setup.model,
            setup.backbone.image_size,
            autocast=autocast,
            channels_last=train.channels_last,
        )
        images = {name: cast(ImageBatches, d) for name, d in setup.datasets.evaluation.items()}
        # With one view, the clean images of train that are scored are part of what trains.
        clean_train = images.pop("train", None) if train.views == 1 else None
        sets = {name: (batches, 1) for name, batches in images.items()}
        hidden, costs = hidden_state_batches(
            lower,
            sets | {"training": (train, recipe.feature_views or 1)},
            cache_folder(),
            batch_size=arguments.per_device_eval_batch_size,
            workers=arguments.dataloader_num_workers,
            weights=weights_fingerprint(setup.model),
            quiet=arguments.disable_tqdm or not arguments.should_save,
        )
        training = hidden.pop("training")
        evaluation: dict[str, BatchDataset] = dict(hidden)
        if clean_train is not None:
            values = training.values[:, : len(clean_train)]
            clean = HiddenStateBatches(values, clean_train.labels, lower)
            evaluation = {"train": clean} | evaluation
        lower.install()
        if recipe.training["dataloader_num_workers"] is None:  # the images' workers end here
            arguments = copy.copy(arguments)
            arguments.dataloader_num_workers = training.workers
            setup = dataclasses.replace(setup, arguments=arguments)
        seconds = time.perf_counter() - start
        return cls(setup, lower, training, evaluation, seconds, costs)

    def results(self) -> dict[str, Any]:
        return super().results() | {
            "features_runtime": self.feature_seconds,
            **cost_facts(self.costs),
        }

    def trained_model(self) -> Any:
        self.lower.remove()
        return super().trained_model()
