"""What of a backbone trains, at which rate, and what happens to the rest.

Blocks and projections are found by looking at the model, never by a family's names, so that all of
it holds across families and library versions.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from hf_cifar.errors import UserError
from hf_cifar.methods.lora import with_lora
from hf_cifar.models.structure import ATTENTION, blocks, head
from hf_cifar.recipe.fields import MethodKeys


def adapt(model: nn.Module, keys: MethodKeys, base_name: str) -> nn.Module:
    """The model (for `lora` a `peft.PeftModel` around it) with `requires_grad` set as `keys.method`
    says, and the named groups.

    The head trains unless `freeze_groups` names it. Batch norms whose weights are frozen stay in
    eval mode, so that their statistics are the pretrained ones. Raises UserError where there is
    nothing to adapt.
    """
    name, linear = head(model)
    if keys.method == "lora":
        model = with_lora(model, keys, name, base_name)
    else:
        model.requires_grad_(keys.method == "full")
        if keys.method == "partial":
            _unfreeze_last(model, keys.unfreeze_blocks)
        linear.requires_grad_(True)
    for key, trains in (("unfreeze_groups", True), ("freeze_groups", False)):
        for group in getattr(keys, key) or []:
            for parameter in _members(model, group, key):
                parameter.requires_grad_(trains)
    _keep_frozen_norms(model)
    return model


def _unfreeze_last(model: nn.Module, count: int) -> None:
    found = blocks(model)
    if count == 0:
        return
    if count > len(found):
        raise UserError(
            f"unfreeze_blocks: {count} is more than the {len(found)} blocks that this model has"
        )
    for name in from_block(model, len(found) - count):
        model.get_parameter(name).requires_grad_(True)


def from_block(model: nn.Module, first: int) -> list[str]:
    """Names of the parameters of block `first` (of `backbones.blocks`) and of all that comes after
    it; with as many as there are blocks, of what comes after the last one.
    """
    names, last, kept = [name for name, _ in blocks(model)], -1, []
    for (
        name,
        _,
    ) in (
        model.named_parameters()
    ):  # registered in forward order: embeddings, blocks, what comes after them
        inside = next((i for i, block in enumerate(names) if name.startswith(block + ".")), None)
        last = last if inside is None else inside
        if last >= first or (inside is None and 0 <= last == len(names) - 1):
            kept.append(name)
    return kept


def _members(model: nn.Module, group: str, key: str) -> list[nn.Parameter]:
    """The backbone's parameters that a group of `freeze_groups` or `unfreeze_groups` names. Raises
    UserError with none.
    """
    found: list[nn.Parameter] = []
    top, late = head(model)[0], set(from_block(model, 0))
    for name, parameter in model.named_parameters():
        module, _, last = name.rpartition(".")
        inside = {
            "norms": "norm" in type(model.get_submodule(module)).__name__.lower(),
            "biases": last == "bias",
            "attention": re.search(ATTENTION, module) is not None,
            "embeddings": name not in late,
            "head": name.startswith(top + "."),
        }
        if inside[group] and (group == "head" or not inside["head"]):
            found.append(parameter)
    if not found:
        raise UserError(f"{key}: {type(model).__name__} has no {group}; leave it out")
    return found


def _keep_frozen_norms(model: nn.Module) -> None:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def to_eval(
        *_: Any,
    ) -> (
        None
    ):  # `Trainer` calls model.train() before every step; what is frozen may change between two
        for norm in norms:
            if not any(p.requires_grad for p in norm.parameters()):
                norm.training = False

    if norms:
        model.register_forward_pre_hook(to_eval)
