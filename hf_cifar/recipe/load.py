"""Find a recipe by name or path, read it, and validate it key by key."""

from __future__ import annotations

import difflib
import functools
import os
import typing
from pathlib import Path
from typing import Any

from hf_cifar.errors import UserError
from hf_cifar.recipe.checks import check_keys_together
from hf_cifar.recipe.fields import (
    PATHS,
    REFUSED,
    TRAINING_DEFAULTS,
    project_fields,
    training_types,
)
from hf_cifar.recipe.recipe import Recipe, packaged, recipe_names
from hf_cifar.recipe.types import shown, validate
from hf_cifar.recipe.yaml_text import MOST_CHARACTERS, read_yaml
from hf_cifar.text import visible


def find_recipe(name_or_path: str) -> Path:
    """Return the file of a recipe: a file, a run folder's, or a packaged one. Raises UserError."""
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    if (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    name = name_or_path.removesuffix(".yaml")
    if name in recipe_names():
        return packaged("recipes") / f"{name}.yaml"
    near = difflib.get_close_matches(visible(name_or_path, most=80), recipe_names(), 1, 0.4)
    hint = f"did you mean `{near[0]}`? " if near else ""
    raise UserError(
        f"{name_or_path}: no such file and no packaged recipe;"
        f" {hint}`hf-cifar recipes list` names them all"
    )


def load_recipe(name_or_path: str, overrides: dict[str, Any] | None = None) -> Recipe:
    """Return the validated recipe of a file or packaged name, with `overrides` on top.

    An override may be text, as on a command line, or a value. Raises UserError that names the file,
    the key, what was expected and the nearest real key.
    """
    path = find_recipe(name_or_path)
    return make_recipe(_recipe_name(path), _read_file(path), overrides, origin=str(path))


def make_recipe(
    name: str,
    values: dict[Any, Any],
    overrides: dict[str, Any] | None = None,
    *,
    origin: str = "recipe",
) -> Recipe:
    """Return the validated recipe of keys and values, with `overrides` on top.

    origin: what messages call the place of the values. Raises UserError as `load_recipe`.
    """
    recipe = Recipe(name=name, overrides=dict(overrides or {}))
    for place, entries in ((origin, values), ("command line", recipe.overrides)):
        for key, value in entries.items():
            _set(recipe, str(key), value, place)
    if recipe.training["output_dir"] is None:
        recipe.training["output_dir"] = f"runs/{recipe.name.replace('/', '-')}"
    check_keys_together(recipe, origin)
    return recipe


def _recipe_name(path: Path) -> str:
    """Return the packaged recipe's name, the run folder's name, or the file's without suffix."""
    resolved, root = path.resolve(), packaged("recipes").resolve()
    if resolved.is_relative_to(root):
        return str(resolved.relative_to(root).with_suffix(""))
    return resolved.parent.name if path.stem == "recipe" else path.stem


def _read_file(path: Path) -> dict[Any, Any]:
    """Return the keys and values of a recipe file. Raises UserError if it is not a recipe."""
    try:
        if path.stat().st_size > MOST_CHARACTERS:
            raise UserError(f"more than {MOST_CHARACTERS:,} bytes")
        values = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: can't be read: {error.strerror}; correct its permissions"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; a recipe is a YAML file in UTF-8") from None
    except UserError as error:
        raise UserError(f"{path}: {error}; a recipe is a YAML file of `key: value` lines") from None
    if values is None:
        raise UserError(f"{path}: empty; write at least one `key: value` line, such as `seed: 0`")
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is made of `key: value` lines, got {shown(values)}")
    return values


def _set(recipe: Recipe, name: str, value: Any, origin: str) -> None:
    """Validate one key and set it in the recipe. Raises UserError."""
    where = f"{origin}: {visible(name, most=80)}"
    is_own = name in project_fields()
    types = _project_types() if is_own else training_types()
    if name in REFUSED:
        raise UserError(f"{where}: can't be set: {REFUSED[name]}")
    if name not in types:
        raise UserError(f"{where}: no such key; {_nearest_key(visible(name, most=80))}")
    value = validate(value, types[name], where)
    if name in PATHS and isinstance(value, str):
        value = _expand_home(value, where)
    if is_own:
        setattr(recipe, name, value)
    else:
        recipe.training[name] = value


@functools.cache
def _project_types() -> dict[str, Any]:
    return typing.get_type_hints(Recipe, include_extras=True)


def _nearest_key(name: str) -> str:
    """Return advice for an unknown key. The keys that `--help` lists come before the others."""
    listed = [*project_fields(), *TRAINING_DEFAULTS]
    near = difflib.get_close_matches(name, listed, 1, 0.75)
    near = near or difflib.get_close_matches(name, [*listed, *training_types()], 1, 0.5)
    return f"did you mean `{near[0]}`?" if near else "`hf-cifar train --help` lists them"


def _expand_home(text: str, where: str) -> str:
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise UserError(f"{where}: no home folder for {shown(text)}; write the whole path")
    return expanded
