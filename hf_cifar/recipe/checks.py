"""Keys of a recipe that contradict each other, or that would do nothing."""

from __future__ import annotations

import itertools

from hf_cifar.errors import UserError
from hf_cifar.recipe.recipe import Recipe


def check_keys_together(recipe: Recipe, where: str) -> None:
    for name in ("random_resized_crop_scale", "random_resized_crop_ratio"):
        pair = getattr(recipe, name)
        if pair is not None and (len(pair) != 2 or pair[0] > pair[1]):
            raise UserError(f"{where}: {name}: takes [least, most], got {pair}")
    if recipe.training["push_to_hub"] and not recipe.training["hub_model_id"]:
        raise UserError(f"{where}: push_to_hub: say where with `hub_model_id: user/name`")
    if recipe.data_path == "device" and recipe.training["dataloader_num_workers"]:
        raise UserError(
            f"{where}: dataloader_num_workers: workers have nothing to do with `data_path: device`; set 0"
        )
    if recipe.training.get("auto_find_batch_size") and recipe.scale_learning_rate != "none":
        raise UserError(
            f"{where}: scale_learning_rate: needs a batch that is known, and auto_find_batch_size finds it; drop one"
        )
    _check_adaptation(recipe, where)
    _check_watching(recipe, where)
    _check_regularization(recipe, where)


def _check_adaptation(recipe: Recipe, where: str) -> None:
    """Keys about what trains that would do nothing, or nothing good, in the recipe's method."""
    freeze, unfreeze = recipe.freeze_groups or [], recipe.unfreeze_groups or []
    if unfreeze and recipe.method != "partial":
        raise UserError(
            f"{where}: unfreeze_groups: only `method: partial` freezes what they would unfreeze; set it"
        )
    if recipe.method == "partial" and recipe.unfreeze_blocks == 0 and not unfreeze:
        raise UserError(
            f"{where}: unfreeze_blocks: 0 leaves only the head, which is `method: linear`; or name unfreeze_groups"
        )
    if both := sorted(set(freeze) & set(unfreeze)):
        raise UserError(f"{where}: freeze_groups: {both[0]} is also in unfreeze_groups; choose one")
    if recipe.method == "linear":
        for name in (
            "dropout",
            "drop_path_rate",
            "freeze_groups",
            "head_epochs",
            "unfreeze_every",
            "muon",
        ):
            if getattr(recipe, name):
                raise UserError(
                    f"{where}: {name}: does nothing with `method: linear`, which trains heads on features"
                )
    if freeze and recipe.method == "lora":
        raise UserError(
            f"{where}: freeze_groups: `method: lora` freezes the whole backbone already; leave it out"
        )
    if "head" in freeze and (recipe.head_init != "pretrained" or recipe.head_epochs):
        raise UserError(
            f"{where}: freeze_groups: a new head must train; keep `head` out, or set `head_init: pretrained` alone"
        )
    if recipe.head_epochs and recipe.unfreeze_every:
        raise UserError(
            f"{where}: unfreeze_every: begins with the head alone by itself; leave head_epochs out"
        )
    epochs = recipe.training["num_train_epochs"]
    for name in ("head_epochs", "unfreeze_every"):
        if recipe.training["max_steps"] <= 0 and getattr(recipe, name) >= epochs:
            raise UserError(
                f"{where}: {name}: nothing but the head would train in num_train_epochs: {epochs:g}; lower it"
            )


def _check_watching(recipe: Recipe, where: str) -> None:
    """What is chosen on validation needs one."""
    t = recipe.training
    if recipe.temperature_scaling and recipe.validation_fraction == 0:
        raise UserError(
            f"{where}: temperature_scaling: is fitted on validation; raise validation_fraction"
        )
    if recipe.early_stopping_patience is None:
        return
    if (
        recipe.validation_fraction == 0
        or t["eval_strategy"] == "no"
        or t["save_strategy"] != t["eval_strategy"]
    ):
        raise UserError(
            f"{where}: early_stopping_patience: watches validation and keeps the best checkpoint; it needs validation_fraction"
            " above 0, and the same eval_strategy and save_strategy"
        )


def _check_regularization(recipe: Recipe, where: str) -> None:
    """Augmentation that training would never see, and schedules that never arrive."""
    schedule, last_epoch = recipe.image_size_schedule, recipe.training["num_train_epochs"]
    views = {"linear": recipe.feature_views or 1, "partial": recipe.feature_views}.get(
        recipe.method
    )
    for name in ("auto_augment", "random_erasing"):
        if getattr(recipe, name) and views == 1:
            raise UserError(
                f"{where}: {name}: does nothing to one view, which is as evaluation sees it; raise feature_views"
            )
    for name in ("mixup_alpha", "cutmix_alpha", "image_size_schedule"):
        if getattr(recipe, name) and views is not None:
            which = "method: linear" if recipe.method == "linear" else "feature_views"
            raise UserError(
                f"{where}: {name}: changes images at every epoch, and `{which}` computes them once; leave it out"
            )
    if schedule is None:
        return
    said = f"{where}: image_size_schedule:"
    if not schedule or any(len(stage) != 2 for stage in schedule):
        raise UserError(f"{said} takes [[epoch, pixels], ...], got {schedule}")
    epochs, sides = zip(*schedule, strict=True)
    if epochs[0] != 0 or any(a >= b for a, b in itertools.pairwise(epochs)):
        raise UserError(f"{said} epochs begin at 0 and rise, got {', '.join(map(str, epochs))}")
    if min(sides) < 8 or max(sides) > 4096:
        raise UserError(f"{said} pixels must be 8 to 4096, got {', '.join(map(str, sides))}")
    if recipe.image_size is not None and sides[-1] != recipe.image_size:
        raise UserError(
            f"{said} the last stage must be image_size ({recipe.image_size}), got {sides[-1]}"
        )
    if recipe.training["max_steps"] <= 0 and epochs[-1] >= last_epoch:
        raise UserError(
            f"{said} the last stage begins at epoch {epochs[-1]}, but num_train_epochs is {last_epoch:g}"
        )
