"""What metrics.json says about a run beside its scores: model, method, hardware, energy."""

from __future__ import annotations

from typing import Any

import torch

from hf_cifar.distributed import world_size
from hf_cifar.methods.base import Setup
from hf_cifar.recipe.recipe import public_name
from hf_cifar.reporting.provenance import (
    commit,
    energy_joules,
    hardware_facts,
    peak_memory,
    versions,
)
from hf_cifar.training.precision import precision_name


def run_facts(setup: Setup) -> dict[str, Any]:
    """Return the facts of a run by their keys in metrics.json. No path of this machine is in it."""
    recipe, arguments, base = setup.recipe, setup.arguments, setup.backbone.model
    parameters = list(setup.model.parameters())
    return {
        **setup.objective.facts(),
        **setup.method.facts(),
        **_base_model(setup),
        "model_type": base.config.model_type,
        "model_class": type(base).__name__,
        "image_size": setup.backbone.image_size,
        "total_parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "forward_flops_per_image": setup.forward_flops,
        "hardware": hardware_facts(arguments.device, arguments.world_size),
        "versions": versions(),
        "commit": commit(),
        "seed": recipe.seed,
        "precision": precision_name(arguments),
        "launch_command": recipe.launch_command(),
        "recipe": recipe.public().to_dict(),
        "license": recipe.license or setup.backbone.license,
        "hub_model_id": recipe.training["hub_model_id"],
        **peak_memory(arguments.device),
    }


def _base_model(setup: Setup) -> dict[str, Any]:
    """Return the name, revision and licence of the pretrained model, as far as there is one."""
    recipe = setup.recipe
    name, revision = public_name(recipe.model_name_or_path), recipe.model_revision
    is_hub_id = name == recipe.model_name_or_path and not name.startswith("pypi:")
    if is_hub_id and "@" in name:
        name, revision = name.split("@", 1)
    known = is_hub_id and not recipe.from_scratch
    return {
        "base_model": None if recipe.from_scratch else name,
        "base_model_revision": revision if known else None,
        "base_model_license": setup.backbone.license,
    }


class EnergyMeter:
    """The energy that a GPU used since this was made, where its counter can be read.

    One process sees the counter of one device, so runs of several processes have no figure.
    """

    def __init__(self) -> None:
        index = torch.cuda.current_device() if torch.cuda.is_available() else None
        self.device = torch.device("cuda", index) if index is not None else torch.device("cpu")
        self.start = energy_joules(self.device) if world_size() == 1 else None

    def facts(self, resumed: bool) -> dict[str, float | None]:
        """Return {"energy_kwh"}; None after a resume, since what came before it is not known."""
        end = energy_joules(self.device)
        if self.start is None or end is None or resumed:
            return {"energy_kwh": None}
        return {"energy_kwh": (end - self.start) / 3.6e6}
