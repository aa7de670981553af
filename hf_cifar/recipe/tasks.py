"""The tasks of `objective: multi_task`: entries of the key `tasks`, read and checked."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import typing
from dataclasses import dataclass
from typing import Any

from hf_cifar.errors import UserError
from hf_cifar.recipe.fields import DataKeys, Positive
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.recipe.types import shown, validate

FOLDER_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
# Endings of other keys in metrics.json, where a task's accuracy is `test_accuracy_` and its name.
TAKEN_NAMES = ("ci95", "seeds")
SAME_DATA = ("dataset_name", "dataset_revision", "dataset_config_name", "image_column_name")
CUTS = ("validation_fraction", "test_fraction", "group_column_name", "group_pattern")
THINNING = ("train_samples_per_class", "max_train_samples", "max_eval_samples")
DATA_KEYS = (*SAME_DATA, "label_column_name", "label_map", *CUTS, *THINNING)


@dataclass(frozen=True)
class Task:
    """One of the tasks that a model learns at once.

    weight: of its loss. orientation: whether its labels are by how much each picture was turned.
    recipe: the run's, with the task's data keys.
    """

    name: str
    weight: float
    orientation: bool
    recipe: Recipe

    @property
    def images(self) -> tuple[Any, ...]:
        """The values that decide which images a task has; tasks with equal ones share them."""
        keys = [getattr(self.recipe, key) for key in (*CUTS, *THINNING)]
        return (self.orientation, *self.data_set, *keys)

    @property
    def data_set(self) -> tuple[Any, ...]:
        """Which data set the task is on, whichever way its folder is written."""
        name, *others = (getattr(self.recipe, key) for key in SAME_DATA)
        return (os.path.realpath(name) if os.path.exists(name) else name, *others)

    def classification_recipe(self) -> Recipe:
        """Return the recipe that trains this task alone on the same images."""
        folder = self.recipe.output_dir
        training = self.recipe.training | {"output_dir": f"{folder}-{self.name}"}
        changes: dict[str, Any] = {"objective": "classification", "tasks": None}
        return dataclasses.replace(
            self.recipe, **changes, task_weighting="fixed", training=training, overrides={}
        )


def check_tasks(recipe: Recipe, where: str) -> None:
    """Raise UserError, beginning with `where`, for tasks that make no sense, or without use."""
    if recipe.objective != "multi_task":
        for key, unset in (("tasks", None), ("task_weighting", "fixed")):
            if getattr(recipe, key) != unset:
                raise UserError(f"{where}: {key}: works only with `objective: multi_task`; set it")
    else:
        read_tasks(recipe, where)


def read_tasks(recipe: Recipe, where: str = "recipe") -> list[Task]:
    """Return the tasks of a recipe, in its order.

    Tasks on one data set are cut by the labels of the first of them, so that no image that one
    trains on is another's for test. Raises UserError, beginning with `where`.
    """
    entries = recipe.tasks or []
    if len(entries) < 2:
        raise UserError(
            f"{where}: tasks: `objective: multi_task` needs two tasks at least, such as"
            " [{name: classes}, {name: kind, label_map: {...}}]"
        )
    tasks: list[Task] = []
    for number, entry in enumerate(entries, 1):
        task = _read_task(recipe, entry, f"{where}: tasks: task {number}")
        if any(task.name.casefold() == other.name.casefold() for other in tasks):
            raise UserError(f"{where}: tasks: two tasks are called {task.name}; rename one")
        tasks.append(task)
    for task in tasks:
        on_same_data = [other for other in tasks if other.data_set == task.data_set]
        _cut_by_the_first(task, on_same_data, f"{where}: tasks")
    return tasks


def _read_task(recipe: Recipe, entry: dict[str, Any], where: str) -> Task:
    hints = typing.get_type_hints(DataKeys, include_extras=True)
    types = {"name": str, "weight": Positive, "orientation": bool}
    types |= {key: hints[key] for key in DATA_KEYS}
    if "name" not in entry:
        raise UserError(f"{where}: has no name; give it one, such as `name: classes`")
    values: dict[str, Any] = {}
    for key, value in entry.items():
        if key not in types:
            near = difflib.get_close_matches(key, types, 1, 0.5)
            advice = f"did you mean `{near[0]}`?" if near else f"choose from {', '.join(types)}"
            raise UserError(f"{where}: {shown(key)}: no such key of a task; {advice}")
        values[key] = validate(value, types[key], f"{where}: {key}")
    name = values.pop("name")
    if not re.fullmatch(FOLDER_NAME, name):
        raise UserError(
            f"{where}: name: {shown(name)} is no folder's name; use letters, digits, dots, dashes"
            " and underscores"
        )
    if name in TAKEN_NAMES:
        raise UserError(f"{where}: name: {name} has another meaning in metrics.json; rename it")
    weight, orientation = values.pop("weight", 1.0), values.pop("orientation", False)
    if orientation and (values.get("label_map") or values.get("label_column_name")):
        raise UserError(
            f"{where}: orientation: its labels are made from the pictures; leave label_map and"
            " label_column_name out"
        )
    if orientation:
        values["label_map"] = None
    if "dataset_name" in values:
        values["dataset_name"] = os.path.expanduser(values["dataset_name"])
    return Task(name, weight, orientation, dataclasses.replace(recipe, **values))


def _cut_by_the_first(task: Task, on_same_data: list[Task], where: str) -> None:
    """Write into the recipe of a task which column its splits are cut by.

    on_same_data: all tasks on its data set, itself among them.
    """
    first = next((t for t in on_same_data if not t.orientation), on_same_data[0])
    for key in CUTS:
        if getattr(first.recipe, key) != getattr(task.recipe, key):
            raise UserError(
                f"{where}: {key} of {first.name} and {task.name} differs, and they are on one data"
                " set, where one would train on the other's test images; set it once"
            )
    if task.orientation:
        task.recipe.label_column_name = first.recipe.label_column_name
    columns = first.recipe.label_column_name, task.recipe.label_column_name
    if None in columns and columns[0] != columns[1]:
        named, other = (task, first) if columns[0] is None else (first, task)
        raise UserError(
            f"{where}: {named.name} names a label_column_name and {other.name}, on the same data"
            " set, does not; name one for each"
        )
    column = first.recipe.split_column_name or columns[0]
    task.recipe.split_column_name = None if column == columns[1] else column
