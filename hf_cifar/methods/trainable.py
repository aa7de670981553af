"""Which parameters of a backbone train.

Blocks and projections are found by looking at the model, never by a family's names, so this holds
across families and library versions.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from hf_cifar.errors import UserError
from hf_cifar.models.structure import ATTENTION, blocks, head_name


def parameters_from_block(model: nn.Module, first: int) -> list[str]:
    """Return the names of the parameters of block `first` and of everything that comes after it.

    With as many as there are blocks, what comes after the last one.
    """
    block_names, last, names = [name for name, _ in blocks(model)], -1, []
    # Parameters are registered in forward order: embeddings, blocks, what comes after them.
    for name, _ in model.named_parameters():
        block = block_of(name, block_names)
        last = last if block is None else block
        after_all_blocks = block is None and 0 <= last == len(block_names) - 1
        if last >= first or after_all_blocks:
            names.append(name)
    return names


def block_of(parameter: str, block_names: list[str]) -> int | None:
    """Return the position of the block that a parameter is in, or None where it is in none."""
    return next((i for i, b in enumerate(block_names) if parameter.startswith(f"{b}.")), None)


def unfreeze_last_blocks(model: nn.Module, count: int) -> None:
    """Let the last `count` blocks train, with what follows them. Raises UserError for too many."""
    total = len(blocks(model))
    if count > total:
        raise UserError(
            f"unfreeze_blocks: {count} is more than the {total} blocks that this model has"
        )
    for name in parameters_from_block(model, total - count) if count else ():
        model.get_parameter(name).requires_grad_(True)


def set_group_trains(model: nn.Module, group: str, trains: bool, key: str) -> None:
    """Let a group of the backbone's parameters train, or not.

    group: norms, biases, attention, embeddings or head. key: the recipe key that names the group.
    Raises UserError where the model has no such parameters.
    """
    classifier, from_first_block = f"{head_name(model)}.", set(parameters_from_block(model, 0))
    members = []
    for name, parameter in model.named_parameters():
        module, _, kind = name.rpartition(".")
        in_head = name.startswith(classifier)
        is_member = {
            "norms": "norm" in type(model.get_submodule(module)).__name__.lower(),
            "biases": kind == "bias",
            "attention": re.search(ATTENTION, module) is not None,
            "embeddings": name not in from_first_block,
            "head": in_head,
        }
        if is_member[group] and (group == "head" or not in_head):
            members.append(parameter)
    if not members:
        raise UserError(f"{key}: {type(model).__name__} has no {group}; leave it out")
    for parameter in members:
        parameter.requires_grad_(trains)


def keep_frozen_norms_in_eval_mode(model: nn.Module) -> None:
    """Keep batch norms whose weights are frozen in eval mode, with the statistics they have.

    The Trainer calls `model.train()` before every step, and a schedule may freeze or unfreeze a
    norm between two steps, so this is done before every forward pass.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def to_eval_mode(*_: Any) -> None:
        for norm in norms:
            if not any(parameter.requires_grad for parameter in norm.parameters()):
                norm.training = False

    if norms:
        model.register_forward_pre_hook(to_eval_mode)
