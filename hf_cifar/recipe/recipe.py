"""A recipe: everything about a run, as one object that a YAML file can hold."""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hf_cifar.recipe.fields import (
    BLOCKS,
    TRAINING_DEFAULTS,
    DataKeys,
    MethodKeys,
    ModelKeys,
    RunKeys,
    TransformKeys,
)

PACKAGE = Path(__file__).parents[1]


def packaged(folder: str) -> Path:
    """`recipes` or `model_cards`: beside the code in a wheel, at the top of the repository in a
    checkout.
    """
    inside = PACKAGE / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder


@dataclass
class Recipe(RunKeys, MethodKeys, TransformKeys, DataKeys, ModelKeys):
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
        """The same recipe for others' eyes: folders by their last part, never a path of this
        machine.
        """
        copy = dataclasses.replace(self, training=dict(self.training))
        copy.model_name_or_path, copy.dataset_name = (
            public_name(copy.model_name_or_path),
            public_name(copy.dataset_name),
        )
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
        """Every key with its value, in the order of the blocks; `load_recipe` reads it back to an
        equal recipe.
        """
        own = {
            f.name: getattr(self, f.name)
            for block in BLOCKS.values()
            for f in dataclasses.fields(block)
        }
        return own | self.training

    def to_yaml(self) -> str:
        """The resolved recipe in comment-headed blocks."""
        values = self.to_dict()
        hub = [k for k in self.training if k.startswith(("hub_", "push_"))]
        groups = {
            title: [f.name for f in dataclasses.fields(block)] for title, block in BLOCKS.items()
        }
        groups["Training"] = [k for k in self.training if k not in hub]
        groups["Hub"] = hub
        dump = {
            title: yaml.safe_dump({k: values[k] for k in keys}, sort_keys=False, width=110)
            for title, keys in groups.items()
        }
        return "\n".join(f"# {title}\n{text}" for title, text in dump.items())


def public_name(name: str) -> str:
    """A Hub id as it is; of a folder or file its last part."""
    path = Path(name).expanduser()
    return (
        path.resolve().name if path.is_absolute() or path.exists() or name.startswith(".") else name
    )


def recipe_names() -> list[str]:
    """Names of the packaged recipes, such as `vit_huge_14/lora`; what lies in `accelerate/` is for
    the launcher.
    """
    root = packaged("recipes")
    return sorted(
        str(p.relative_to(root).with_suffix(""))
        for p in root.rglob("*.yaml")
        if p.parent.name != "accelerate"
    )
