"""Optimizer groups: which parameter trains at which rate."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from hf_cifar.models.structure import blocks, head
from hf_cifar.recipe.fields import MethodKeys


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    head_learning_rate: float | None,
    layer_decay: float,
    muon: bool = False,
) -> list[dict[str, Any]]:
    """Optimizer groups of the parameters that train: {name, params, lr, weight_decay, muon}; with
    `muon`, it is true of the blocks' matrices.

    Norms, biases and everything else with fewer than two dimensions, position embeddings and tokens
    take no weight decay. With `layer_decay` d, a parameter of block i of n trains at d ** (n - i)
    of `learning_rate`, what stands before the blocks at d ** (n + 1), what stands between two
    (Swin's and ConvNeXt's downsampling) like the second of them, what stands after them and the
    head at the full rate.
    """
    names = [n for n, _ in blocks(model)]
    head_name = head(model)[0]
    groups: dict[tuple[str, bool, bool], dict[str, Any]] = {}
    last = (
        -1
    )  # parameters are registered in forward order: embeddings, blocks, what comes after them
    for name, parameter in model.named_parameters():
        inside = next((i for i, block in enumerate(names) if name.startswith(block + ".")), None)
        last = last if inside is None else inside
        if inside is None and 0 <= last < len(names) - 1:
            inside = last + 1
        if not parameter.requires_grad:
            continue
        if name.startswith(head_name + "."):
            place, lr = "head", head_learning_rate or learning_rate
        elif inside is not None:
            place, lr = f"block {inside}", learning_rate * layer_decay ** (len(names) - inside)
        elif last < 0:
            place, lr = "embeddings", learning_rate * layer_decay ** (len(names) + 1)
        else:
            place, lr = "after blocks", learning_rate
        plain = parameter.ndim < 2 or re.search(r"position|pos_embed|token", name) is not None
        matrix = muon and not plain and parameter.ndim == 2 and place.startswith("block ")
        title = place + (" (no decay)" if plain else " (muon)" if matrix else "")
        made = {
            "name": title,
            "params": [],
            "lr": lr,
            "weight_decay": 0.0 if plain else weight_decay,
            "muon": matrix,
        }
        group = groups.setdefault((place, plain, matrix), made)
        group["params"].append(parameter)
    return list(groups.values())


def learning_rate_scale(keys: MethodKeys, batch: int) -> float:
    """What the learning rates of a recipe are multiplied by at a batch of so many images an update,
    over all processes and
    accumulation: in proportion (Goyal et al. 2017, arXiv 1706.02677) or by the square root
    (Krizhevsky 2014, arXiv 1404.5997).
    """
    share = batch / keys.scale_learning_rate_base
    return {"none": 1.0, "linear": share, "sqrt": share**0.5}[keys.scale_learning_rate]


def group_table(groups: list[dict[str, Any]]) -> str:
    """What trains, for the log: one line a group with parameters, learning rate and weight decay."""
    lines = [f"{'group':<24}{'parameters':>14}{'learning rate':>16}{'weight decay':>14}"]
    for g in groups:
        count = sum(p.numel() for p in g["params"])
        lines.append(f"{g['name']:<24}{count:>14,}{g['lr']:>16.3g}{g['weight_decay']:>14.3g}")
    return "\n".join(lines)
