"""The image side that a backbone takes, and how it is changed."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from hf_cifar.errors import UserError
from hf_cifar.models.check_config import MAX_SIDE
from hf_cifar.models.structure import head
from hf_cifar.text import visible

INTERPOLATE = "interpolate_pos_encoding"  # a forward argument and a method of transformers' models


def native_size(config: Any, processor: Any, name: str) -> int:
    """Return the side in pixels at which the backbone called `name` was pretrained.

    A transformer's config says it. The configs of convolutional networks have none or the library's
    default, so their processor is asked first.
    Raises UserError for a side that no picture has.
    """
    if hasattr(processor, "data_config"):  # timm's
        return _checked_side(processor.data_config["input_size"][-1], name)
    declared = getattr(config, "image_size", None)
    side = declared[0] if isinstance(declared, list | tuple) else declared
    size = dict(getattr(processor, "size", None) or {})
    crop = dict(getattr(processor, "crop_size", None) or {})
    if getattr(processor, "do_center_crop", False):
        processed = crop.get("height")
    else:
        processed = size.get("height") or size.get("shortest_edge")
    is_transformer = hasattr(config, "num_attention_heads")
    candidates = (side, processed) if is_transformer else (processed, side)
    return _checked_side(candidates[0] or candidates[1] or 224, name)


def _checked_side(side: Any, name: str) -> int:
    if not isinstance(side, int | float) or not 1 <= side <= MAX_SIDE:
        raise UserError(
            f"image_size: that of {name} is {visible(side, 80)}; set one in 1 to {MAX_SIDE}"
        )
    return int(side)


def check_size(model: nn.Module, size: int, name: str, key: str = "image_size") -> None:
    """Raise UserError, which names `key`, unless `size` is a multiple of the patch."""
    timm_embedding = getattr(getattr(model, "timm_model", None), "patch_embed", None)
    patch = getattr(model.config, "patch_size", None) or getattr(timm_embedding, "patch_size", None)
    patch = patch[0] if isinstance(patch, list | tuple) else patch
    if patch and size % patch:
        near = max(patch, round(size / patch) * patch)
        raise UserError(f"{key}: {size} is no multiple of {name}'s patch of {patch}; use {near}")


@torch.no_grad()
def check_schedule(model: Any, sides: list[int], image_size: int) -> dict[str, Any]:
    """Return the forward arguments for images of other sides than `image_size`, after a probe.

    They are `interpolate_pos_encoding`, where the model takes that, or nothing. The position
    embeddings keep their size and learn through the resampling.

    Raises UserError for `image_size_schedule` unless the model takes every side, and then computes
    at `image_size` what it did before.
    """
    name, parameter = model.config.model_type, next(model.parameters())
    if sides[-1] != image_size:
        raise UserError(
            f"image_size_schedule: the last stage must be the model's image size of {image_size},"
            f" got {sides[-1]}"
        )
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    takes_flag = INTERPOLATE in inspect.signature(base.forward).parameters
    resized_inputs = {INTERPOLATE: True} if takes_flag else {}
    features: list[torch.Tensor] = []
    hook = head(model)[1].register_forward_pre_hook(lambda _, args: features.append(args[0]))
    mode = model.training
    model.eval()
    try:
        for side in (image_size, *sides, image_size):
            check_size(model, side, name, "image_size_schedule")
            ramp = torch.linspace(-1, 1, 3 * side * side, device=parameter.device)
            inputs = resized_inputs if side != image_size else {}
            try:
                model(pixel_values=ramp.view(1, 3, side, side), **inputs)
            except (RuntimeError, ValueError, AssertionError, TypeError) as error:
                reason = str(error).splitlines()[0][:120]
                raise UserError(
                    f"image_size_schedule: {name} doesn't take {side} px: {reason};"
                    " leave the stage out"
                ) from None
    finally:
        hook.remove()
        model.train(mode)
    # Swin keeps the smaller attention window of a smaller image for good.
    if not torch.allclose(features[0], features[-1], atol=1e-4):
        raise UserError(
            f"image_size_schedule: {name} at {min(sides)} px changes for good;"
            " use larger sides or none"
        )
    return resized_inputs


def set_image_size(model: Any, size: int) -> None:
    """Bake another image side into the model, so that `pipeline` needs no flag.

    Position embeddings are resampled once, by the library's own function, and the size is written
    into the config.
    """
    check_size(model, size, model.config.model_type)
    if model.config.model_type == "timm_wrapper":
        # timm's transformers have this method; its convolutional networks take any size.
        if hasattr(model.timm_model, "set_input_size"):
            model.timm_model.set_input_size(img_size=(size, size))
            model.config.model_args = {**(model.config.model_args or {}), "img_size": size}
        return
    for module in model.modules():
        if (
            hasattr(module, INTERPOLATE)
            and getattr(module, "position_embeddings", None) is not None
        ):
            _resample_positions(module, size)
    for module in model.modules():
        if isinstance(getattr(module, "image_size", None), tuple):
            module.image_size = (size, size)
        if hasattr(module, "num_patches"):
            grid = _grid(module.patch_size, size)
            module.num_patches = grid[0] * grid[1]
            if hasattr(module, "grid_size"):
                module.grid_size = grid
    if getattr(model.config, "image_size", None) is not None:
        model.config.image_size = size


def _grid(patch: int | tuple[int, int], size: int) -> tuple[int, int]:
    """Return how many patches lie below and beside each other in an image of this side."""
    height, width = (patch, patch) if isinstance(patch, int) else patch
    return size // height, size // width


@torch.no_grad()
def _resample_positions(module: Any, size: int) -> None:
    """Resample the position embeddings [1, tokens, width] of a transformer's embedding module."""
    old = module.position_embeddings
    height, width = _grid(module.patch_embeddings.patch_size, size)
    prefix = old.shape[1] - module.patch_embeddings.num_patches  # class token, distillation token
    tokens = height * width + prefix
    if old.shape[1] == tokens:
        return
    new = module.interpolate_pos_encoding(old.new_zeros(1, tokens, old.shape[-1]), size, size)
    module.position_embeddings = nn.Parameter(new.clone(), requires_grad=old.requires_grad)
