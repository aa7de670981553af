"""Refuse keys of a recipe that contradict each other or that would do nothing."""

from __future__ import annotations

import importlib.util
import itertools
import re

from hf_cifar.errors import UserError
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.recipe.tasks import check_tasks
from hf_cifar.recipe.types import shown

NOTHING_IN_LINEAR = (
    "dropout",
    "drop_path_rate",
    "freeze_groups",
    "head_epochs",
    "unfreeze_every",
    "muon",
    "monitor_features",
)
SINGLE_LABEL = ("classification", "distillation", "semi_supervised")  # objectives
NEED_SINGLE_LABEL = {  # keys, their defaults
    "positive_class": None,
    "target_specificity": None,
    "class_weights": "none",
    "sampler": "shuffled",
}


def check_keys_together(recipe: Recipe, where: str) -> None:
    """Raise UserError, beginning with `where`, for the first keys that don't go together."""
    training = recipe.training
    for name in ("random_resized_crop_scale", "random_resized_crop_ratio"):
        pair = getattr(recipe, name)
        if pair is not None and (len(pair) != 2 or pair[0] > pair[1]):
            raise UserError(f"{where}: {name}: must be [smallest, largest], got {shown(pair)}")
    percentiles = recipe.deep_pixels
    if isinstance(percentiles, list) and (
        len(percentiles) != 2 or percentiles[0] >= percentiles[1]
    ):
        raise UserError(f"{where}: deep_pixels: must be [low, high], got {shown(percentiles)}")
    if training["push_to_hub"] and not training["hub_model_id"]:
        raise UserError(f"{where}: push_to_hub: set `hub_model_id: user/name` as well")
    if recipe.data_path == "device" and training["dataloader_num_workers"]:
        raise UserError(
            f"{where}: dataloader_num_workers: `data_path: device` needs no workers; set 0"
        )
    for name in ("dataloader_persistent_workers", "dataloader_multiprocessing_context"):
        if training.get(name) and not training["dataloader_num_workers"]:
            raise UserError(f"{where}: {name}: needs dataloader_num_workers above 0; set it")
    if training.get("auto_find_batch_size") and recipe.scale_learning_rate != "none":
        raise UserError(
            f"{where}: scale_learning_rate: needs a batch size that is known, but"
            " auto_find_batch_size changes it; leave one of the two out"
        )
    if training.get("use_liger_kernel") and importlib.util.find_spec("liger_kernel") is None:
        raise UserError(
            f"{where}: use_liger_kernel: needs the package liger-kernel; install it or leave the"
            " key out"
        )
    if recipe.teacher is not None and recipe.objective != "distillation":
        raise UserError(f"{where}: teacher: works only with `objective: distillation`; set it")
    if recipe.unlabelled_dataset is not None and recipe.objective != "semi_supervised":
        raise UserError(
            f"{where}: unlabelled_dataset: works only with `objective: semi_supervised`; set it"
        )
    _check_groups(recipe, where)
    _check_single_label(recipe, where)
    check_tasks(recipe, where)
    _check_method(recipe, where)
    _check_validation(recipe, where)
    _check_augmentation(recipe, where)


def _check_groups(recipe: Recipe, where: str) -> None:
    """Refuse two ways to name the groups, and a pattern that can't find any."""
    if recipe.group_pattern is None:
        return
    start = f"{where}: group_pattern:"
    if recipe.group_column_name is not None:
        raise UserError(
            f"{start} group_column_name names the groups already; leave one of them out"
        )
    try:
        groups = re.compile(recipe.group_pattern).groups
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(
            f"{start} is no regular expression ({error}), got {shown(recipe.group_pattern)}"
        ) from None
    if groups == 0:
        raise UserError(
            f"{start} has no parentheses around what names the group, got"
            f" {shown(recipe.group_pattern)}; write it as (patient\\d+)_"
        )


def _check_single_label(recipe: Recipe, where: str) -> None:
    """Refuse keys about the classes where an objective doesn't give each image one of them."""
    if recipe.objective not in SINGLE_LABEL:
        for name, default in NEED_SINGLE_LABEL.items():
            if getattr(recipe, name) != default:
                raise UserError(
                    f"{where}: {name}: does nothing with `objective: {recipe.objective}`; leave it"
                    " out"
                )
    if recipe.sampler == "shuffled":
        return
    start = f"{where}: sampler: balanced"
    if recipe.class_weights != "none":
        raise UserError(f"{start} and class_weights do the same; leave one of them out")
    if recipe.method == "linear":
        raise UserError(
            f"{start} does nothing with `method: linear`, which learns from all images at once; set"
            " `class_weights: balanced`"
        )
    if recipe.objective == "semi_supervised":
        raise UserError(
            f"{start} does not go with `objective: semi_supervised`, which draws images in its own"
            " way; set `class_weights: balanced`"
        )
    if recipe.objective == "distillation" and recipe.teacher_views == "each_epoch":
        raise UserError(
            f"{start} draws images repeatedly in an epoch, for which the teacher has one view of"
            " each; set `teacher_views: plain`"
        )


def _check_method(recipe: Recipe, where: str) -> None:
    """Refuse keys about the weights that train which have no effect with the recipe's method."""
    freeze, unfreeze = recipe.freeze_groups or [], recipe.unfreeze_groups or []
    if unfreeze and recipe.method != "partial":
        raise UserError(f"{where}: unfreeze_groups: works only with `method: partial`; set it")
    if recipe.method == "partial" and recipe.unfreeze_blocks == 0 and not unfreeze:
        raise UserError(
            f"{where}: unfreeze_blocks: with 0 only the classifier trains, which is"
            " `method: linear`; raise it or set unfreeze_groups"
        )
    if both := sorted(set(freeze) & set(unfreeze)):
        raise UserError(
            f"{where}: freeze_groups: {both[0]} is also in unfreeze_groups; remove it from one"
        )
    if recipe.method == "linear":
        for name in NOTHING_IN_LINEAR:
            if getattr(recipe, name):
                raise UserError(
                    f"{where}: {name}: does nothing with `method: linear`, which trains only a"
                    " classifier on features; leave it out"
                )
    if freeze and recipe.method == "lora":
        raise UserError(
            f"{where}: freeze_groups: `method: lora` freezes the whole backbone already; leave it"
            " out"
        )
    if "head" in freeze and (recipe.head_init != "pretrained" or recipe.head_epochs):
        raise UserError(
            f"{where}: freeze_groups: a new classifier must train; remove `head`, or set"
            " `head_init: pretrained` without head_epochs"
        )
    if recipe.head_epochs and recipe.unfreeze_every:
        raise UserError(
            f"{where}: unfreeze_every: trains only the classifier at first; leave head_epochs out"
        )
    epochs = recipe.training["num_train_epochs"]
    for name in ("head_epochs", "unfreeze_every"):
        if recipe.training["max_steps"] <= 0 and getattr(recipe, name) >= epochs:
            raise UserError(
                f"{where}: {name}: only the classifier would train in num_train_epochs:"
                f" {epochs:g}; lower {name}"
            )


def _check_validation(recipe: Recipe, where: str) -> None:
    """Refuse keys that choose something on validation where there is none."""
    training, no_validation = recipe.training, recipe.validation_fraction == 0
    if recipe.temperature_scaling and no_validation:
        raise UserError(
            f"{where}: temperature_scaling: is fitted on validation; raise validation_fraction"
        )
    if recipe.target_specificity is not None and no_validation:
        raise UserError(
            f"{where}: target_specificity: its threshold is chosen on validation; raise"
            " validation_fraction"
        )
    if recipe.monitor_features and (no_validation or training["eval_strategy"] == "no"):
        raise UserError(
            f"{where}: monitor_features: watches validation images at each evaluation; raise"
            " validation_fraction, and set eval_strategy to steps or epoch"
        )
    evaluations, saves = training["eval_strategy"], training["save_strategy"]
    if recipe.early_stopping_patience is not None and (
        no_validation or evaluations == "no" or saves != evaluations
    ):
        raise UserError(
            f"{where}: early_stopping_patience: needs validation_fraction above 0, and the same"
            " eval_strategy and save_strategy, to keep the best checkpoint on validation"
        )


def _check_augmentation(recipe: Recipe, where: str) -> None:
    """Refuse augmentation that training would never see, and size schedules that don't fit."""
    views = {"linear": recipe.feature_views or 1, "partial": recipe.feature_views}.get(
        recipe.method
    )
    for name in ("auto_augment", "random_erasing"):
        if getattr(recipe, name) and views == 1:
            raise UserError(
                f"{where}: {name}: does nothing with one view of an image, which is as evaluation"
                " sees it; raise feature_views"
            )
    _check_consistency(recipe, where)
    for name in ("mixup_alpha", "cutmix_alpha", "image_size_schedule", "consistency_weight"):
        if getattr(recipe, name) and views is not None:
            cause = "method: linear" if recipe.method == "linear" else "feature_views"
            raise UserError(
                f"{where}: {name}: changes images in every epoch, but with `{cause}` features are"
                f" computed once; leave {name} out"
            )
    if recipe.image_size_schedule is not None:
        _check_size_schedule(recipe, f"{where}: image_size_schedule:")


def _check_consistency(recipe: Recipe, where: str) -> None:
    """Refuse a consistency loss without views to compare, or whose images are mixed."""
    if not recipe.consistency_weight:
        return
    start = f"{where}: consistency_weight:"
    if recipe.objective != "classification":
        raise UserError(
            f"{start} `objective: {recipe.objective}` has a loss of its own; leave the key out"
        )
    if recipe.auto_augment != "augmix":
        raise UserError(f"{start} compares mixtures of AugMix; set `auto_augment: augmix`")
    for name in ("mixup_alpha", "cutmix_alpha"):
        if getattr(recipe, name):
            raise UserError(
                f"{start} compares views of one image, and `{name}` mixes two; leave one of them"
                " out"
            )


def _check_size_schedule(recipe: Recipe, where: str) -> None:
    schedule, last_epoch = recipe.image_size_schedule, recipe.training["num_train_epochs"]
    if not schedule or any(len(stage) != 2 for stage in schedule):
        raise UserError(f"{where} must be [[epoch, pixels], ...], got {shown(schedule)}")
    epochs, sizes = zip(*schedule, strict=True)
    if epochs[0] != 0 or any(a >= b for a, b in itertools.pairwise(epochs)):
        raise UserError(f"{where} epochs must start at 0 and rise, got {shown(list(epochs))}")
    if min(sizes) < 8 or max(sizes) > 4096:
        raise UserError(f"{where} pixels must be 8 to 4096, got {shown(list(sizes))}")
    if recipe.image_size is not None and sizes[-1] != recipe.image_size:
        raise UserError(
            f"{where} the last size must be image_size ({recipe.image_size}), got {sizes[-1]}"
        )
    if recipe.training["max_steps"] <= 0 and epochs[-1] >= last_epoch:
        raise UserError(
            f"{where} the last size begins in epoch {epochs[-1]}, but num_train_epochs is"
            f" {last_epoch:g}"
        )
