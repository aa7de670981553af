"""Tiny models that a method has prepared, and real training steps of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_cifar.methods.parameter_groups import parameter_groups
from hf_cifar.methods.table import METHODS
from hf_cifar.models.load import load_backbone
from hf_cifar.recipe.fields import ModelKeys
from hf_cifar.recipe.recipe import Recipe

LABELS = list("abcdefghij")


def load_model(path: Path) -> Any:
    """Return the model of a folder, with a new head for LABELS."""
    return load_backbone(ModelKeys(model_name_or_path=str(path)), LABELS).model


def prepare(model: Any, method: str = "full", **keys: Any) -> Any:
    """Return the model as a method prepares it, with keys that are small for tiny models."""
    small = {"lora_r": 2, "lora_alpha": 4.0, "unfreeze_blocks": 1}
    recipe = Recipe(**{"model_name_or_path": "hub/base"} | small | keys)  # type: ignore[arg-type]
    return METHODS[method](recipe).prepare(model)


def trainable_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def train_steps(model: Any, steps: int = 3) -> Any:
    """Train as the Trainer does: in train mode, with our parameter groups and weight decay."""
    groups = parameter_groups(model, 1e-2, 0.1)
    optimizer = torch.optim.AdamW(
        [{name: value for name, value in g.items() if name != "name"} for g in groups]
    )
    random = torch.Generator().manual_seed(0)
    for _ in range(steps):
        model.train()
        pixels = torch.randn(8, 3, 32, 32, generator=random)
        labels = torch.randint(10, (8,), generator=random)
        loss = nn.functional.cross_entropy(model(pixel_values=pixels).logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def leaves_in_order(model: Any) -> list[str]:
    """Return the names of the modules that hold parameters themselves, in the order in which a
    forward pass reaches them.
    """
    order: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: order.append(name))
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    with torch.no_grad():
        model.eval()(pixel_values=torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    return list(dict.fromkeys(order))
