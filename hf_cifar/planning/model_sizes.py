"""The sizes of a recipe's model in training, worked out before any weight is loaded.

The model is built from its config on torch's meta device and runs on fake tensors there: what
autograd keeps is what it would keep, and nothing takes memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Trainer

from hf_cifar.errors import UserError
from hf_cifar.methods.parameter_groups import parameter_groups
from hf_cifar.methods.table import METHODS
from hf_cifar.models.flops import forward_flops
from hf_cifar.objectives.table import find_objective
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.training.arguments import training_arguments
from hf_cifar.training.sharding import wrap_classes


@dataclass(frozen=True)
class Sizes:
    """What one process that holds everything takes.

    parameters, trainable, largest_block, blocks: counts. weights (float32), gradients, optimizer,
    copies (autocast's, of the weights): bytes. image: bytes that autograd keeps of one image.
    flops: of one image's forward pass.
    """

    parameters: int
    trainable: int
    largest_block: int
    blocks: int
    weights: int
    gradients: int
    optimizer: int
    copies: int
    image: float
    flops: int


def model_sizes(recipe: Recipe, *, checkpointing: bool, bf16: bool) -> Sizes:
    """Return the sizes of a recipe's model. Raises UserError for what can't be built or trained."""
    method = METHODS[recipe.method](recipe)
    bare, size = find_objective(recipe).skeleton(recipe)
    with torch.device("meta"):
        model: Any = method.prepare(bare)
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    block_classes = wrap_classes(model)
    blocks = [m for m in model.modules() if type(m).__name__ in block_classes]
    largest = max((sum(p.numel() for p in b.parameters()) for b in blocks), default=0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        make_fake(model)
        flops = forward_flops(model, size, torch.device("cpu"))
        if method.runs_backbone_once:
            image = _forward_peak(model, size, bf16)
            # Without autograd, autocast's copies go as soon as they have been used.
            copies = 2 * largest if bf16 else 0
        else:
            model.train()
            if checkpointing:
                _enable_checkpointing(model)
            two, four = (kept_by_autograd(model, size, batch, bf16) for batch in (2, 4))
            image = (four - two) / 2
            copies = max(0, 2 * two - four)  # what does not grow with the batch
    return Sizes(
        parameters=total,
        trainable=trainable,
        largest_block=largest,
        blocks=len(blocks),
        weights=4 * total,
        gradients=4 * trainable,
        optimizer=optimizer_bytes(recipe, model) * trainable,
        copies=copies,
        image=image,
        flops=flops,
    )


def make_fake(model: nn.Module) -> None:
    """Give a model on the meta device fake CPU tensors, in place, inside a FakeTensorMode."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(empty, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def kept_by_autograd(model: nn.Module, size: int, batch: int, bf16: bool) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, without the parameters;
    each storage counts once.
    """
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in weights:
            kept[storage] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        model(pixel_values=torch.randn(batch, 3, size, size)).logits.float().sum()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _forward_peak(model: nn.Module, size: int, bf16: bool) -> float:
    """Return about how many bytes of one image live at a time without autograd: three times the
    largest output of a module (an input, an output and a residual beside them).
    """
    largest = 0

    def note(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, torch.Tensor):
            largest = max(largest, output.untyped_storage().nbytes())

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        model.eval()(pixel_values=torch.randn(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return 3.0 * largest


def _enable_checkpointing(model: Any) -> None:
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError:
        raise UserError(
            f"gradient_checkpointing: {type(model).__name__} has none; leave it out"
        ) from None


def optimizer_bytes(recipe: Recipe, model: nn.Module) -> int:
    """Return the bytes of optimizer state for each trained parameter, from one step of the real
    optimizer with a matrix of 64 x 64.
    """
    arguments = training_arguments(recipe, find_objective(recipe).checkpoint_metrics)
    kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(arguments, model)  # type: ignore[arg-type]
    if {"params", "model", "optimizer_dict"} & set(kwargs):
        raise UserError(
            f"optim: {arguments.optim} chooses its own parameters, so the memory it takes is not"
            " known beforehand; name another"
        )
    probe = nn.Parameter(torch.zeros(64, 64))
    probe.grad = torch.ones_like(probe)
    optimizer = kind([probe], **kwargs)
    optimizer.step()
    state = [
        value
        for value in optimizer.state[probe].values()
        if isinstance(value, torch.Tensor) and value.ndim
    ]
    per_parameter = sum(v.numel() * v.element_size() for v in state) // probe.numel()
    if not recipe.muon:
        return per_parameter
    counts = {True: 0, False: 0}
    for group in parameter_groups(model, 1.0, 0.0, muon=True):
        counts[group["muon"]] += sum(parameter.numel() for parameter in group["params"])
    # Muon keeps one float32 momentum for each entry of the blocks' matrices.
    total = max(1, sum(counts.values()))
    return round((4 * counts[True] + per_parameter * counts[False]) / total)
