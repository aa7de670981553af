"""The parts of a backbone, found by looking at it: its classifier and its residual blocks."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from hf_cifar.errors import UserError

log = logging.getLogger(__name__)

ATTENTION = r"(^|[._])(self_)?att(n|ention)"  # in a module's name


def head(model: Any) -> tuple[str, nn.Linear]:
    """Name and module of the classifier: the last linear layer with as many outputs as there are
    labels.
    """
    outputs = model.config.num_labels
    found = [
        (n, m)
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and m.out_features == outputs
    ]
    if not found:
        raise UserError(
            f"{model.config.model_type}: has no linear classifier, so no head can be trained"
        )
    return found[-1]


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The residual blocks of any backbone, in forward order, found by looking at it.

    A block is a direct child of a ModuleList or Sequential that holds at least two weight matrices
    (a lone convolution with its norm is no block), and that holds no such child itself (a stage is
    no block). What peft adds does not count.
    """

    def matrices(module: nn.Module) -> int:
        own = [
            p
            for n, p in module.named_parameters()
            if n.endswith("weight") and not re.search(r"lora_|modules_to_save", n)
        ]
        return sum(p.ndim >= 2 and p.numel() > p.shape[0] for p in own)

    def inside(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
        for child_name, child in module.named_children():
            full = f"{name}.{child_name}" if name else child_name
            deeper = list(inside(child, full))
            if deeper:
                yield from deeper
            elif isinstance(module, nn.ModuleList | nn.Sequential) and matrices(child) >= 2:
                yield full, child

    return list(inside(model, ""))


def describe(model: nn.Module) -> str:
    """One line for the log: class, parameters, blocks."""
    count = sum(p.numel() for p in model.parameters())
    return f"{type(model).__name__}: {count / 1e6:.1f} M parameters, {len(blocks(model))} blocks"
