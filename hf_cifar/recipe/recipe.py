"""A recipe: everything about a run, as one object that a YAML file can hold."""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_cifar.recipe.fields import (
    BLOCKS,
    PATHS,
    TRAINING_DEFAULTS,
    DataKeys,
    MethodKeys,
    ModelKeys,
    ObjectiveKeys,
    RunKeys,
    TransformKeys,
)
from hf_cifar.recipe.yaml_text import write_yaml

PACKAGE = Path(__file__).parents[1]


def packaged(folder: str) -> Path:
    """Return the folder `recipes` or `model_cards`.

    It stands beside the code in an installed package, and at the top of the repository in a
    checkout.
    """
    inside = PACKAGE / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder


@dataclass
class Recipe(RunKeys, MethodKeys, ObjectiveKeys, TransformKeys, DataKeys, ModelKeys):
    """The project's own keys as attributes, the keys of TrainingArguments in `training`.

    name: the packaged recipe's name, or the file's without its suffix.
    overrides: the keys that were set on top of the file, as they were given.
    """

    name: str = "recipe"
    overrides: dict[str, Any] = field(default_factory=dict, compare=False)
    training: dict[str, Any] = field(default_factory=lambda: dict(TRAINING_DEFAULTS))

    @property
    def seed(self) -> int:
        return self.training["seed"]

    @property
    def views_at_once(self) -> int:
        """How many images a batch holds for each that is counted: views of it, or unlabelled ones
        in two views each.
        """
        if self.objective == "semi_supervised":
            return 1 + 2 * self.unlabelled_ratio
        return 3 if self.consistency_weight else 1

    @property
    def output_dir(self) -> Path:
        """The run folder."""
        return Path(self.training["output_dir"])

    def public(self) -> Recipe:
        """Return a copy that shows no path of this machine: of a folder only its name remains."""
        copy = dataclasses.replace(self, training=dict(self.training))
        for name in PATHS:
            values = copy.training if name in copy.training else vars(copy)
            if isinstance(value := values.get(name), str):
                values[name] = public_name(value)
        copy.training["output_dir"] = f"runs/{self.output_dir.name}"
        if self.tasks is not None:
            copy.tasks = [
                {k: public_name(v) if k == "dataset_name" else v for k, v in task.items()}
                for task in self.tasks
            ]
        return copy

    def launch_command(self) -> str:
        """Return the command line of this run, with folders by name only.

        A recipe that is not packaged is called `recipe.yaml`, as it is named beside the card.
        """
        words = ["hf-cifar", "train", self.name if self.name in recipe_names() else "recipe.yaml"]
        for name, value in self.overrides.items():
            if name not in ("output_dir", "disable_tqdm"):
                text = public_name(value) if isinstance(value, str) else json.dumps(value)
                words += [f"--{name}", text]
        return shlex.join(words)

    def to_dict(self) -> dict[str, Any]:
        """Return every key with its value; `load_recipe` reads it back to an equal recipe."""
        names = [f.name for block in BLOCKS.values() for f in dataclasses.fields(block)]
        return {name: getattr(self, name) for name in names} | self.training

    def to_yaml(self) -> str:
        """Return the resolved recipe as YAML in blocks, each below a comment with its title."""
        blocks = {
            title: {f.name: getattr(self, f.name) for f in dataclasses.fields(block)}
            for title, block in BLOCKS.items()
        }
        hub = {name: value for name, value in self.training.items() if is_hub_key(name)}
        blocks["Training"] = {k: v for k, v in self.training.items() if k not in hub}
        blocks["Hub"] = hub
        return "\n".join(f"# {title}\n{write_yaml(values)}" for title, values in blocks.items())


def is_hub_key(name: str) -> bool:
    """Return whether a key of TrainingArguments stands in a recipe's Hub block."""
    return name.startswith(("hub_", "push_"))


def public_name(name: str) -> str:
    """Return the last part of a folder's or file's path; a Hub id stays as it is."""
    path = Path(name).expanduser()
    if path.is_absolute() or name.startswith(".") or path.exists():
        return path.resolve().name
    return name


def recipe_names() -> list[str]:
    """Return the names of the packaged recipes, such as `vit_huge_14/lora`.

    The files in `accelerate/` are for the launcher and are not recipes.
    """
    root = packaged("recipes")
    files = [path for path in root.rglob("*.yaml") if path.parent.name != "accelerate"]
    return sorted(str(path.relative_to(root).with_suffix("")) for path in files)
