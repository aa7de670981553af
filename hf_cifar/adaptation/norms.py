"""The normalisation layers of a model: what adaptation changes, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_cifar.errors import UserError


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms of a model that hold statistics, in its order."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]


def norms(model: nn.Module) -> list[nn.Module]:
    """Return the normalisation layers of a model whose scales and shifts can train."""
    kinds = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)
    return [
        module
        for module in model.modules()
        if isinstance(module, kinds) and getattr(module, "weight", None) is not None
    ]


def norm_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the scales and shifts of all normalisation layers. Raises UserError without any."""
    parameters = [p for module in norms(model) for p in module.parameters(recurse=False)]
    if not parameters:
        raise UserError(
            f"{type(model).__name__} has no normalisation layers, so it can't be adapted; choose"
            " another model"
        )
    return parameters


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Let batch norms normalise by the statistics of each batch, without changing those that they
    hold, while the block runs.
    """
    layers = batch_norms(model)
    before = [(layer.training, layer.momentum) for layer in layers]
    counted = [layer.num_batches_tracked.clone() for layer in layers]  # type: ignore[union-attr]
    for layer in layers:
        layer.train()
        layer.momentum = 0.0  # of the new statistics, nothing goes into those that are held
    try:
        yield
    finally:
        for layer, (training, momentum), batches in zip(layers, before, counted, strict=True):
            layer.train(training)
            layer.momentum = momentum
            layer.num_batches_tracked.copy_(batches)  # type: ignore[union-attr]


@contextmanager
def watch_inputs(layers: list[_BatchNorm], seen: Any) -> Iterator[None]:
    """Call seen(layer, input) before each of the layers runs, while the block runs."""
    hooks = [
        layer.register_forward_pre_hook(lambda module, args: seen(module, args[0]))
        for layer in layers
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def mean_and_variance(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and (biased) variance of each channel, float32 [C], of [B, C, ...]."""
    axes = [axis for axis in range(values.ndim) if axis != 1]
    variance, mean = torch.var_mean(values.float(), axes, correction=0)
    return mean, variance
