"""Optimizer groups: which parameter trains at which rate."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from hf_cifar.methods.trainable import block_of
from hf_cifar.models.structure import blocks, head_name
from hf_cifar.recipe.fields import MethodKeys

REFERENCE_BATCH = 256  # images an update at which `scale_learning_rate` changes nothing


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    *,
    head_learning_rate: float | None = None,
    layer_decay: float = 1.0,
    muon: bool = False,
) -> list[dict[str, Any]]:
    """Return the groups {name, params, lr, weight_decay, muon} of the parameters that train.

    Norms, biases and everything else with fewer than two dimensions, position embeddings and tokens
    take no weight decay. With `muon`, the key is true for the matrices of the blocks.

    With a `layer_decay` of d, a parameter of block i of n trains at d ** (n - i) times
    `learning_rate`, and what comes before the blocks at d ** (n + 1) times. What stands between two
    blocks (the downsampling of Swin and ConvNeXt) belongs to the second of them; what comes after
    the blocks, and the head, train at the full rate.
    """
    block_names, classifier = [name for name, _ in blocks(model)], f"{head_name(model)}."
    count = len(block_names)
    groups: dict[tuple[str, bool, bool], dict[str, Any]] = {}
    last = -1  # the last block seen: parameters are registered in forward order
    for name, parameter in model.named_parameters():
        block = block_of(name, block_names)
        last = last if block is None else block
        if block is None and 0 <= last < count - 1:
            block = last + 1
        if not parameter.requires_grad:
            continue
        if name.startswith(classifier):
            place, rate = "head", head_learning_rate or learning_rate
        elif block is not None:
            place, rate = f"block {block}", learning_rate * layer_decay ** (count - block)
        elif last < 0:
            place, rate = "embeddings", learning_rate * layer_decay ** (count + 1)
        else:
            place, rate = "after blocks", learning_rate
        no_decay = parameter.ndim < 2 or re.search(r"position|pos_embed|token", name) is not None
        by_muon = muon and not no_decay and parameter.ndim == 2 and place.startswith("block ")
        group = groups.setdefault(
            (place, no_decay, by_muon),
            {
                "name": place + (" (no decay)" if no_decay else " (muon)" if by_muon else ""),
                "params": [],
                "lr": rate,
                "weight_decay": 0.0 if no_decay else weight_decay,
                "muon": by_muon,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def learning_rate_scale(keys: MethodKeys, batch: int) -> float:
    """Return the factor for the recipe's learning rates at `batch` images an update, counted over
    all processes and accumulation.

    In proportion to the batch (Goyal et al. 2017, arXiv 1706.02677) or to its square root
    (Krizhevsky 2014, arXiv 1404.5997).
    """
    ratio = batch / REFERENCE_BATCH
    return {"none": 1.0, "linear": ratio, "sqrt": ratio**0.5}[keys.scale_learning_rate]


def group_table(groups: list[dict[str, Any]]) -> str:
    """Return a line for each group, with its parameters, learning rate and weight decay."""
    lines = [f"{'group':<24}{'parameters':>14}{'learning rate':>16}{'weight decay':>14}"]
    for group in groups:
        count = sum(parameter.numel() for parameter in group["params"])
        rate, decay = group["lr"], group["weight_decay"]
        lines.append(f"{group['name']:<24}{count:>14,}{rate:>16.3g}{decay:>14.3g}")
    return "\n".join(lines)
