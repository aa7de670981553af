"""Which recipes a race compares: every backbone with every method, on the same data."""

from __future__ import annotations

import dataclasses
import os
import re
import textwrap
from pathlib import Path
from typing import Any

from hf_cifar.errors import UserError
from hf_cifar.evaluation.backbone_recipe import backbone_recipe
from hf_cifar.methods.table import METHODS
from hf_cifar.models.load import skeleton
from hf_cifar.models.structure import ATTENTION
from hf_cifar.objectives.table import find_objective
from hf_cifar.recipe.fields import (
    BLOCKS,
    TRAINING_DEFAULTS,
    DataKeys,
    ModelKeys,
    project_fields,
)
from hf_cifar.recipe.load import make_recipe
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.recipe.yaml_text import write_yaml

# Keys for a backbone that comes without a recipe for the method; as most packaged recipes have
# them, with batches of 32, since more steps matter more than larger ones in a short run.
GRADIENT: dict[str, Any] = {"per_device_train_batch_size": 32, "label_smoothing_factor": 0.1}
FULL = GRADIENT | {"layer_decay": 0.75, "weight_decay": 0.05}
PRESETS: dict[str, dict[str, Any]] = {
    "linear": {},
    "lora": GRADIENT
    | {
        "lora_r": 16,
        "lora_alpha": 32.0,
        "lora_target_modules": "all",
        "learning_rate": 1e-3,
    },
    "partial": FULL,
    "full": FULL,
}
FULL_RATE, ATTENTION_FULL_RATE = 1e-3, 5e-4  # of convolutional networks, and of transformers
CHOSEN_BY_THE_RACE = {
    "method": "name the methods with --methods",
    "model_name_or_path": "name the backbones before the options",
    "max_steps": "the race chooses how long each run is from --minutes",
}
HELD_OUT = 0.1  # of train, to compare on; the 2 % that choose a checkpoint tell too little


def contestant_recipes(
    words: list[str], methods: list[str], keys: dict[str, Any]
) -> dict[tuple[str, str], Recipe]:
    """Return the recipe of every backbone with every method, by (word, method).

    A recipe among the words is taken as it is for its own method. For other methods, and for a
    backbone by name, the keys are those in PRESETS.

    words: as `backbone_recipe` takes them. keys: recipe keys with their text, on top of all. Raises
    UserError for what can't be had, and for recipes of different data.
    """
    for key, remedy in CHOSEN_BY_THE_RACE.items():
        if key in keys:
            raise UserError(f"compare: --{key}: can't be set here; {remedy}")
    if unknown := [method for method in methods if method not in METHODS]:
        raise UserError(f"compare: --methods: {unknown[0]}: choose from {', '.join(METHODS)}")
    for names, option in ((words, "backbones"), (methods, "--methods")):
        if repeated := [name for name in names if names.count(name) > 1]:
            raise UserError(f"compare: {option}: {repeated[0]} stands twice; name it once")
    recipes: dict[tuple[str, str], Recipe] = {}
    for word in words:
        base = backbone_recipe(word, keys)
        if base.tasks or "accuracy" not in find_objective(base).checkpoint_metrics:
            raise UserError(
                f"compare: {word}: objective {base.objective} has no accuracy of one task to"
                " compare by; name recipes of classification"
            )
        has_attention = _has_attention(base)  # a backbone that can't be had ends the command here
        is_recipe = base.model_name_or_path != os.path.expanduser(word)
        for method in methods:
            if is_recipe and base.method == method:
                recipes[word, method] = base
            else:
                recipes[word, method] = _with_preset(word, base, method, has_attention, keys)
    _check_same_data(recipes)
    return recipes


def _has_attention(recipe: Recipe) -> bool:
    model, _ = skeleton(recipe)
    return any(re.search(ATTENTION, name) for name, _ in model.named_modules())


def _with_preset(
    word: str, base: Recipe, method: str, has_attention: bool, keys: dict[str, Any]
) -> Recipe:
    """Return a recipe with backbone and data of `base`, and the keys of PRESETS."""
    names = [field.name for block in (ModelKeys, DataKeys) for field in dataclasses.fields(block)]
    values = {name: getattr(base, name) for name in names} | {"seed": base.seed}
    if method in ("full", "partial"):
        values["learning_rate"] = ATTENTION_FULL_RATE if has_attention else FULL_RATE
    return make_recipe(base.name, values | PRESETS[method] | {"method": method}, keys, origin=word)


def _check_same_data(recipes: dict[tuple[str, str], Recipe]) -> None:
    """Raise UserError for recipes of different data, which can't be compared."""
    names = [field.name for field in dataclasses.fields(DataKeys)]
    (first_word, _), first = next(iter(recipes.items()))
    for (word, _), recipe in recipes.items():
        ours, theirs = (
            {name: getattr(side, name) for name in names} | {"seed": side.seed}
            for side in (first, recipe)
        )
        if different := [name for name in ours if ours[name] != theirs[name]]:
            name = different[0]
            raise UserError(
                f"compare: {name} is {ours[name]} for {first_word} and {theirs[name]} for {word};"
                f" set --{name} for all of them"
            )


def race_keys(recipe: Recipe, keys: dict[str, Any], most_validation: int) -> dict[str, Any]:
    """Return the data keys that a race changes: a larger validation split, of bounded size.

    keys: those that the user has set, which stay. Raises UserError for a race without validation.
    """
    changes: dict[str, Any] = {}
    if recipe.validation_fraction == 0 and "validation_fraction" in keys:
        raise UserError(
            "compare: validation_fraction: scores are on validation images; raise it above 0"
        )
    if "validation_fraction" not in keys:
        changes["validation_fraction"] = max(HELD_OUT, recipe.validation_fraction)
    if recipe.max_eval_samples is None:
        changes["max_eval_samples"] = most_validation
    return changes


def winner_yaml(recipe: Recipe, comment: str) -> str:
    """Return a recipe as a file that `train` takes, of those keys that differ from the defaults.

    A folder is named by its whole path, so that the file works from everywhere. comment: lines for
    the top of the file.
    """
    defaults = {name: _default(field) for name, field in project_fields().items()}
    values = {
        name: getattr(recipe, name)
        for name in project_fields()
        if getattr(recipe, name) != defaults[name]
        or name in ("model_name_or_path", "dataset_name", "method")
    }
    for name in ("model_name_or_path", "dataset_name", "exclude", "teacher", "unlabelled_dataset"):
        path = Path(values.get(name) or "").expanduser()
        if name in values and values[name] != "sample" and path.exists():
            values[name] = str(path.resolve())
    lines = [part for line in comment.splitlines() for part in textwrap.wrap(line, 98)]
    parts = ["".join(f"# {line}\n" for line in lines)]
    for title, block in BLOCKS.items():
        names = [field.name for field in dataclasses.fields(block) if field.name in values]
        if names:
            parts.append(f"# {title}\n" + write_yaml({name: values[name] for name in names}))
    training = {
        name: value
        for name, value in recipe.training.items()
        if value != TRAINING_DEFAULTS.get(name) and name != "output_dir"
    }
    if training:
        parts.append("# Training\n" + write_yaml(training))
    return "\n".join(parts)


def _default(field: dataclasses.Field) -> Any:
    factory = field.default_factory
    return field.default if factory is dataclasses.MISSING else factory()
