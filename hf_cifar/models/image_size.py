"""The image side that a backbone takes, and how it is changed."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from hf_cifar.errors import UserError
from hf_cifar.models.structure import head


def native_size(config: Any, processor: Any) -> int:
    """Side in pixels at which the backbone was pretrained: a transformer's config says it; the
    configs of convolutional networks carry none or the library's default, so what their processor
    makes is asked first.
    """
    if hasattr(processor, "data_config"):  # timm's
        return int(processor.data_config["input_size"][-1])
    declared = getattr(config, "image_size", None)
    side = declared[0] if isinstance(declared, list | tuple) else declared
    size, crop = (
        dict(getattr(processor, "size", None) or {}),
        dict(getattr(processor, "crop_size", None) or {}),
    )
    made = (
        crop.get("height")
        if getattr(processor, "do_center_crop", False)
        else size.get("height") or size.get("shortest_edge")
    )
    attends = hasattr(config, "num_attention_heads")
    return int((side or made if attends else made or side) or 224)


def check_size(model: nn.Module, size: int, name: str, key: str = "image_size") -> None:
    """Raises UserError, which names `key`, unless `size` is a multiple of the patch."""
    timm_embedding = getattr(getattr(model, "timm_model", None), "patch_embed", None)
    patch = getattr(model.config, "patch_size", None) or getattr(timm_embedding, "patch_size", None)
    patch = patch[0] if isinstance(patch, list | tuple) else patch
    if patch and size % patch:
        near = max(patch, round(size / patch) * patch)
        raise UserError(f"{key}: {size} is no multiple of {name}'s patch of {patch}; use {near}")


@torch.no_grad()
def check_schedule(model: Any, sides: list[int], image_size: int) -> dict[str, Any]:
    """What the model's forward must be told with images of other sides than `image_size`:
    `interpolate_pos_encoding`, where it takes that (its position embeddings keep their size and
    learn through the resampling), or nothing.

    Raises UserError for `image_size_schedule` unless the model takes every side and then is what it
    was; seen on a probe.
    """
    name, parameter = model.config.model_type, next(model.parameters())
    if sides[-1] != image_size:
        raise UserError(
            f"image_size_schedule: the last stage must be the model's image size of {image_size}, got {sides[-1]}"
        )
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    flag = "interpolate_pos_encoding"
    told = {flag: True} if flag in inspect.signature(base.forward).parameters else {}
    caught: list[torch.Tensor] = []
    handle = head(model)[1].register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    mode = model.training
    model.eval()
    try:
        for side in (image_size, *sides, image_size):
            check_size(model, side, name, "image_size_schedule")
            pixels = torch.linspace(-1, 1, 3 * side * side, device=parameter.device).view(
                1, 3, side, side
            )
            try:
                model(pixel_values=pixels, **(told if side != image_size else {}))
            except (RuntimeError, ValueError, AssertionError, TypeError) as error:
                said = str(error).splitlines()[0][:120]
                raise UserError(
                    f"image_size_schedule: {name} doesn't take {side} px: {said}; leave the stage out"
                ) from None
    finally:
        handle.remove()
        model.train(mode)
    if not torch.allclose(
        caught[0], caught[-1], atol=1e-4
    ):  # Swin takes the smaller attention window over for good
        raise UserError(
            f"image_size_schedule: {name} at {min(sides)} px changes for good; use larger sides or none"
        )
    return told


def set_image_size(model: Any, size: int) -> None:
    """Bake another image side into the model: position embeddings resampled once, by the library's
    own function, and the size written into the config, so that `pipeline` needs no flag.
    """
    check_size(model, size, model.config.model_type)
    if model.config.model_type == "timm_wrapper":
        if hasattr(
            model.timm_model, "set_input_size"
        ):  # timm's transformers; its convolutional networks take any size
            model.timm_model.set_input_size(img_size=(size, size))
            model.config.model_args = {**(model.config.model_args or {}), "img_size": size}
        return
    for module in model.modules():
        if (
            hasattr(module, "interpolate_pos_encoding")
            and getattr(module, "position_embeddings", None) is not None
        ):
            _resample_positions(module, size)
    for module in model.modules():
        if isinstance(getattr(module, "image_size", None), tuple):
            module.image_size = (size, size)
        if hasattr(module, "num_patches"):
            patch = _pair(module.patch_size)
            module.num_patches = (size // patch[0]) * (size // patch[1])
            if hasattr(module, "grid_size"):
                module.grid_size = (size // patch[0], size // patch[1])
    if getattr(model.config, "image_size", None) is not None:
        model.config.image_size = size


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _resample_positions(module: Any, size: int) -> None:
    old = module.position_embeddings
    patch = _pair(module.patch_embeddings.patch_size)
    tokens = (size // patch[0]) * (size // patch[1])
    prefix = old.shape[1] - module.patch_embeddings.num_patches  # class token, distillation token
    if old.shape[1] == tokens + prefix:
        return
    like = old.new_zeros(1, tokens + prefix, old.shape[-1])
    with torch.no_grad():
        new = module.interpolate_pos_encoding(like, size, size)
    module.position_embeddings = nn.Parameter(new.clone(), requires_grad=old.requires_grad)
