"""What BACKBONE_OR_RECIPE on a command line stands for: a recipe of a backbone and data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from hf_cifar.evaluation.evaluate import data_recipe
from hf_cifar.recipe.fields import DataKeys
from hf_cifar.recipe.load import load_recipe, make_recipe
from hf_cifar.recipe.recipe import Recipe, public_name, recipe_names


def backbone_recipe(word: str, overrides: dict[str, Any]) -> Recipe:
    """Return the recipe that a word names: a recipe's file or packaged name as it is; a run folder,
    as the trained model with the run's data; or any other model, with the default data.

    overrides: keys with their text, on top. Raises UserError for keys that are not valid.
    """
    folder = Path(word).expanduser()
    if (folder / "config.json").is_file() and (folder / "recipe.yaml").is_file():
        run = data_recipe(word, None)
        values = {field.name: getattr(run, field.name) for field in dataclasses.fields(DataKeys)}
        values |= {"model_name_or_path": word, "seed": run.seed}
        return make_recipe(folder.resolve().name, values, overrides, origin=word)
    if folder.is_file() or word.removesuffix(".yaml") in recipe_names() or word.endswith(".yaml"):
        return load_recipe(word, overrides)
    name = public_name(word).removeprefix("pypi:").replace("/", "-").partition("@")[0]
    return make_recipe(name, {"model_name_or_path": word}, overrides, origin=word)
