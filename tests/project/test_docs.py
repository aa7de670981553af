"""The code in docs/ is code that works."""

import re
import types
from pathlib import Path

import yaml

from hf_cifar.methods.base import Method
from hf_cifar.models.load import load_backbone
from hf_cifar.recipe.load import load_recipe, make_recipe

DOCS = Path(__file__).parents[2] / "docs"


def test_the_example_of_a_method_trains_what_it_says(tiny):
    page = (DOCS / "add_a_method.md").read_text(encoding="utf-8")
    example = types.ModuleType("norms")
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], example.__dict__)
    method_type = next(
        value
        for value in vars(example).values()
        if isinstance(value, type) and issubclass(value, Method) and value is not Method
    )
    recipe = load_recipe("quickstart", {"model_name_or_path": str(tiny("vit")), "image_size": "32"})
    method = method_type(recipe)
    model = method.prepare(load_backbone(recipe, ["a", "b"]).model)
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trains and all("norm" in name or name.startswith("classifier.") for name in trains)
    assert {name for name in trains if name.startswith("classifier.")}
    assert method.facts()["method_description"] == method_type.description


def test_the_recipe_for_groups_and_thresholds_is_one():
    page = (DOCS / "groups_and_thresholds.md").read_text(encoding="utf-8")
    recipe = make_recipe(
        "cells", yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    )
    assert re.search(recipe.group_pattern, "defect/cell12_3.png")[1] == "cell12"
