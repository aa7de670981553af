"""A recipe: one flat YAML file that says everything about a run, found, read and checked key by key
(see `keys`).
"""

from __future__ import annotations

import difflib
import typing
from pathlib import Path
from typing import Any

import yaml

from hf_cifar.errors import UserError
from hf_cifar.recipe.checks import check_keys_together
from hf_cifar.recipe.fields import (
    REFUSED,
    TRAINING_DEFAULTS,
    TRAINING_RANGES,
    project_fields,
    training_types,
)
from hf_cifar.recipe.recipe import Recipe, packaged, recipe_names
from hf_cifar.recipe.types import check_range, coerce


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
    raise UserError(
        f"{name_or_path}: no such file and no packaged recipe; {hint}`hf-cifar recipes list` names them all"
    )


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice; YAML itself would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for k, _ in node.value:
            if not isinstance(k, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a word", k.start_mark
                )
            if k.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key `{k.value}` stands twice", k.start_mark
                )
            seen.add(k.value)
        return super().construct_mapping(node, deep)


def load_recipe(name_or_path: str, overrides: dict[str, Any] | None = None) -> Recipe:
    """The recipe of a file or packaged name, with `overrides` (text is read as YAML) on top,
    checked key by key.

    Raises UserError that names file, key and the nearest real key.
    """
    path = find_recipe(name_or_path)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(
            f"{path}: can't be read: {error.strerror}; correct its permissions"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", error)).split())
        raise UserError(
            f"{path}{line}: not a YAML file of `key: value` lines ({problem})"
        ) from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: a recipe is a list of `key: value` lines, this is a {type(values).__name__}"
        )
    inside = packaged("recipes").resolve()
    known = path.resolve()
    name = (
        str(known.relative_to(inside).with_suffix(""))
        if known.is_relative_to(inside)
        else path.stem
    )
    recipe = Recipe(
        name=path.parent.name if name == "recipe" else name, overrides=dict(overrides or {})
    )
    for origin, entries in ((str(path), values), ("command line", overrides or {})):
        for k, v in entries.items():
            _set(recipe, str(k), v, origin)
    if recipe.training["output_dir"] is None:
        recipe.training["output_dir"] = f"runs/{recipe.name.replace('/', '-')}"
    check_keys_together(recipe, str(path))
    return recipe


def _set(recipe: Recipe, name: str, value: Any, origin: str) -> None:
    where = f"{origin}: {name}"
    if name in (own := project_fields()):
        value = coerce(value, typing.get_type_hints(Recipe)[name], where)
        m = own[name].metadata
        check_range(value, m["low"], m["high"], m["above"], where)
        setattr(recipe, name, value)
        return
    if name in REFUSED:
        raise UserError(f"{where}: can't be set: {REFUSED[name]}")
    hints = training_types()
    if name not in hints:
        shown = [
            *own,
            *TRAINING_DEFAULTS,
        ]  # what --help names comes before the library's hundred others
        near = difflib.get_close_matches(name, shown, 1, 0.75) or difflib.get_close_matches(
            name, [*shown, *hints], 1, 0.5
        )
        raise UserError(
            f"{where}: no such key"
            + (f"; did you mean `{near[0]}`?" if near else "; `hf-cifar train --help` lists them")
        )
    value = coerce(value, hints[name], where)
    check_range(value, *TRAINING_RANGES.get(name, (None, None, None)), where)
    recipe.training[name] = value
