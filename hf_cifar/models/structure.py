"""The parts of a backbone, found by looking at it: its classifier and its residual blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from hf_cifar.errors import UserError

DECODER = "decoder"  # of a masked autoencoder
ATTENTION = r"(^|[._])(self_)?att(n|ention)"  # matches the names of attention modules


def head_name(model: Any) -> str | None:
    """Return the name of the classifier, or None for a model without one.

    The classifier is the last linear layer with as many outputs as the model has labels. What a
    masked autoencoder has in its place is its decoder.
    """
    if model.config.model_type == "vit_mae":
        return DECODER
    outputs = model.config.num_labels
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == outputs
    ]
    return names[-1] if names else None


def head(model: Any) -> tuple[str, nn.Linear]:
    """Return name and module of the classifier. Raises UserError for a model without one."""
    name = head_name(model)
    if name is None:
        raise UserError(
            f"{model.config.model_type}: has no linear classifier, so no head can be trained"
        )
    return name, model.get_submodule(name)


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return names and modules of the residual blocks of any backbone, in forward order.

    A block is a direct child of a ModuleList or Sequential with at least two weight matrices that
    holds no block itself. A convolution with its norm has one matrix, and is no block. A stage
    holds blocks, and is no block. Weights that peft adds do not count, nor does a decoder.
    """

    def has_two_matrices(module: nn.Module) -> bool:
        weights = [
            parameter
            for name, parameter in module.named_parameters()
            if name.endswith("weight") and not re.search(r"lora_|modules_to_save", name)
        ]
        return sum(w.ndim >= 2 and w.numel() > w.shape[0] for w in weights) >= 2

    def blocks_in(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
        for child_name, child in module.named_children():
            name = f"{prefix}{child_name}"
            inner_blocks = list(blocks_in(child, f"{name}."))
            if inner_blocks:
                yield from inner_blocks
            elif isinstance(module, nn.ModuleList | nn.Sequential) and has_two_matrices(child):
                yield name, child

    all_blocks = blocks_in(model, "")
    return [(name, block) for name, block in all_blocks if not name.startswith(f"{DECODER}.")]


def describe(model: nn.Module) -> str:
    """Return one line for the log: class, parameters, blocks."""
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    return f"{type(model).__name__}: {millions:.1f} M parameters, {len(blocks(model))} blocks"
