"""A recipe: one flat YAML file that says everything about a run, found, read and checked key by key (see `keys`)."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import shlex
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hf_cifar.errors import UserError
from hf_cifar.keys import (
    BLOCKS,
    REFUSED,
    TRAINING_DEFAULTS,
    TRAINING_RANGES,
    AdaptationKeys,
    DataKeys,
    ModelKeys,
    RunKeys,
    TransformKeys,
    check_range,
    coerce,
    own_fields,
    training_hints,
)

PACKAGE = Path(__file__).parent


def packaged(folder: str) -> Path:
    """`recipes` or `model_cards`: beside the code in a wheel, at the top of the repository in a checkout."""
    inside = PACKAGE / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder


@dataclass
class Recipe(RunKeys, AdaptationKeys, TransformKeys, DataKeys, ModelKeys):
    """The project's own keys as attributes, the keys of TrainingArguments in `training`."""

    name: str = "recipe"
    overrides: dict[str, Any] = field(default_factory=dict, compare=False)
    training: dict[str, Any] = field(default_factory=lambda: dict(TRAINING_DEFAULTS))

    @property
    def seed(self) -> int:
        return self.training["seed"]

    @property
    def output_dir(self) -> Path:
        """The run folder."""
        return Path(self.training["output_dir"])

    def public(self) -> Recipe:
        """The same recipe for others' eyes: folders by their last part, never a path of this machine."""
        copy = dataclasses.replace(self, training=dict(self.training))
        copy.model_name_or_path, copy.dataset_name = public_name(copy.model_name_or_path), public_name(copy.dataset_name)
        copy.training["output_dir"] = f"runs/{self.output_dir.name}"
        return copy

    def launch_command(self) -> str:
        """What was typed, folders by name; a recipe that is not packaged lies beside the card."""
        words = ["hf-cifar", "train", self.name if self.name in recipe_names() else "recipe.yaml"]
        for k, v in self.overrides.items():
            if k not in ("output_dir", "disable_tqdm"):
                words += [f"--{k}", public_name(v) if isinstance(v, str) else json.dumps(v)]
        return shlex.join(words)

    def to_dict(self) -> dict[str, Any]:
        """Every key with its value, in the order of the blocks; `load_recipe` reads it back to an equal recipe."""
        own = {f.name: getattr(self, f.name) for block in BLOCKS.values() for f in dataclasses.fields(block)}
        return own | self.training

    def to_yaml(self) -> str:
        """The resolved recipe in comment-headed blocks."""
        values = self.to_dict()
        hub = [k for k in self.training if k.startswith(("hub_", "push_"))]
        groups = {title: [f.name for f in dataclasses.fields(block)] for title, block in BLOCKS.items()}
        groups["Training"] = [k for k in self.training if k not in hub]
        groups["Hub"] = hub
        dump = {
            title: yaml.safe_dump({k: values[k] for k in keys}, sort_keys=False, width=110) for title, keys in groups.items()
        }
        return "\n".join(f"# {title}\n{text}" for title, text in dump.items())


def public_name(name: str) -> str:
    """A Hub id as it is; of a folder or file its last part."""
    path = Path(name).expanduser()
    return path.resolve().name if path.is_absolute() or path.exists() or name.startswith(".") else name


def recipe_names() -> list[str]:
    """Names of the packaged recipes, such as `vit_huge_14/lora`; what lies in `accelerate/` is for the launcher."""
    root = packaged("recipes")
    return sorted(str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.yaml") if p.parent.name != "accelerate")


def find_recipe(name_or_path: str) -> Path:
    """The file of a recipe that is named by path or, if packaged, by name. Raises UserError."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    inside = packaged("recipes") / f"{name_or_path.removesuffix('.yaml')}.yaml"
    if name_or_path in recipe_names() or name_or_path.removesuffix(".yaml") in recipe_names():
        return inside
    near = difflib.get_close_matches(name_or_path, recipe_names(), 1, 0.4)
    hint = f"did you mean `{near[0]}`? " if near else ""
    raise UserError(f"{name_or_path}: no such file and no packaged recipe; {hint}`hf-cifar recipes list` names them all")


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice; YAML itself would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for k, _ in node.value:
            if not isinstance(k, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", k.start_mark)
            if k.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key `{k.value}` stands twice", k.start_mark)
            seen.add(k.value)
        return super().construct_mapping(node, deep)


def load_recipe(name_or_path: str, overrides: dict[str, Any] | None = None) -> Recipe:
    """The recipe of a file or packaged name, with `overrides` (text is read as YAML) on top, checked key by key.

    Raises UserError that names file, key and the nearest real key.
    """
    path = find_recipe(name_or_path)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}; correct its permissions") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", error)).split())
        raise UserError(f"{path}{line}: not a YAML file of `key: value` lines ({problem})") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a list of `key: value` lines, this is a {type(values).__name__}")
    inside = packaged("recipes").resolve()
    known = path.resolve()
    name = str(known.relative_to(inside).with_suffix("")) if known.is_relative_to(inside) else path.stem
    recipe = Recipe(name=path.parent.name if name == "recipe" else name, overrides=dict(overrides or {}))
    for origin, entries in ((str(path), values), ("command line", overrides or {})):
        for k, v in entries.items():
            _set(recipe, str(k), v, origin)
    if recipe.training["output_dir"] is None:
        recipe.training["output_dir"] = f"runs/{recipe.name.replace('/', '-')}"
    _check_together(recipe, str(path))
    return recipe


def _check_together(recipe: Recipe, where: str) -> None:
    for name in ("random_resized_crop_scale", "random_resized_crop_ratio"):
        pair = getattr(recipe, name)
        if pair is not None and (len(pair) != 2 or pair[0] > pair[1]):
            raise UserError(f"{where}: {name}: takes [least, most], got {pair}")
    if recipe.training["push_to_hub"] and not recipe.training["hub_model_id"]:
        raise UserError(f"{where}: push_to_hub: say where with `hub_model_id: user/name`")
    if recipe.data_path == "device" and recipe.training["dataloader_num_workers"]:
        raise UserError(f"{where}: dataloader_num_workers: workers have nothing to do with `data_path: device`; set 0")
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
        raise UserError(f"{where}: unfreeze_groups: only `method: partial` freezes what they would unfreeze; set it")
    if recipe.method == "partial" and recipe.unfreeze_blocks == 0 and not unfreeze:
        raise UserError(f"{where}: unfreeze_blocks: 0 leaves only the head, which is `method: linear`; or name unfreeze_groups")
    if both := sorted(set(freeze) & set(unfreeze)):
        raise UserError(f"{where}: freeze_groups: {both[0]} is also in unfreeze_groups; choose one")
    if recipe.method == "linear":
        for name in ("dropout", "drop_path_rate", "freeze_groups", "head_epochs", "unfreeze_every", "muon"):
            if getattr(recipe, name):
                raise UserError(f"{where}: {name}: does nothing with `method: linear`, which trains heads on features")
    if freeze and recipe.method == "lora":
        raise UserError(f"{where}: freeze_groups: `method: lora` freezes the whole backbone already; leave it out")
    if "head" in freeze and (recipe.head_init != "pretrained" or recipe.head_epochs):
        raise UserError(f"{where}: freeze_groups: a new head must train; keep `head` out, or set `head_init: pretrained` alone")
    if recipe.head_epochs and recipe.unfreeze_every:
        raise UserError(f"{where}: unfreeze_every: begins with the head alone by itself; leave head_epochs out")
    epochs = recipe.training["num_train_epochs"]
    for name in ("head_epochs", "unfreeze_every"):
        if recipe.training["max_steps"] <= 0 and getattr(recipe, name) >= epochs:
            raise UserError(f"{where}: {name}: nothing but the head would train in num_train_epochs: {epochs:g}; lower it")


def _check_watching(recipe: Recipe, where: str) -> None:
    """What is chosen on validation needs one."""
    t = recipe.training
    if recipe.temperature_scaling and recipe.validation_fraction == 0:
        raise UserError(f"{where}: temperature_scaling: is fitted on validation; raise validation_fraction")
    if recipe.early_stopping_patience is None:
        return
    if recipe.validation_fraction == 0 or t["eval_strategy"] == "no" or t["save_strategy"] != t["eval_strategy"]:
        raise UserError(
            f"{where}: early_stopping_patience: watches validation and keeps the best checkpoint; it needs validation_fraction"
            " above 0, and the same eval_strategy and save_strategy"
        )


def _check_regularization(recipe: Recipe, where: str) -> None:
    """Augmentation that training would never see, and schedules that never arrive."""
    schedule, last_epoch = recipe.image_size_schedule, recipe.training["num_train_epochs"]
    views = {"linear": recipe.feature_views or 1, "partial": recipe.feature_views}.get(recipe.method)
    for name in ("auto_augment", "random_erasing"):
        if getattr(recipe, name) and views == 1:
            raise UserError(f"{where}: {name}: does nothing to one view, which is as evaluation sees it; raise feature_views")
    for name in ("mixup_alpha", "cutmix_alpha", "image_size_schedule"):
        if getattr(recipe, name) and views is not None:
            which = "method: linear" if recipe.method == "linear" else "feature_views"
            raise UserError(f"{where}: {name}: changes images at every epoch, and `{which}` computes them once; leave it out")
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
        raise UserError(f"{said} the last stage must be image_size ({recipe.image_size}), got {sides[-1]}")
    if recipe.training["max_steps"] <= 0 and epochs[-1] >= last_epoch:
        raise UserError(f"{said} the last stage begins at epoch {epochs[-1]}, but num_train_epochs is {last_epoch:g}")


def _set(recipe: Recipe, name: str, value: Any, origin: str) -> None:
    where = f"{origin}: {name}"
    if name in (own := own_fields()):
        value = coerce(value, typing.get_type_hints(Recipe)[name], where)
        m = own[name].metadata
        check_range(value, m["low"], m["high"], m["above"], where)
        setattr(recipe, name, value)
        return
    if name in REFUSED:
        raise UserError(f"{where}: can't be set: {REFUSED[name]}")
    hints = training_hints()
    if name not in hints:
        shown = [*own, *TRAINING_DEFAULTS]  # what --help names comes before the library's hundred others
        near = difflib.get_close_matches(name, shown, 1, 0.75) or difflib.get_close_matches(name, [*shown, *hints], 1, 0.5)
        raise UserError(
            f"{where}: no such key" + (f"; did you mean `{near[0]}`?" if near else "; `hf-cifar train --help` lists them")
        )
    value = coerce(value, hints[name], where)
    check_range(value, *TRAINING_RANGES.get(name, (None, None, None)), where)
    recipe.training[name] = value
