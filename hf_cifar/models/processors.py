"""The backbone's own image processor, set to see the whole picture at the size the model sees."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BitImageProcessor, ViTImageProcessor

from hf_cifar.errors import UserError

# Processors whose own resize can't see a whole picture of any shape, that work one PIL image at a
# time, or that normalise twice and so can't be asked to resize only; a ViTImageProcessor with the
# right numbers does the same arithmetic.
REPLACED = ("ConvNextImageProcessor", "TimmWrapperImageProcessor", "EfficientNetImageProcessor")


def evaluation_processor(processor: Any, size: int, center_crop: bool) -> Any:
    """The processor, set to give `size` pixels a side: the whole picture squeezed into them, or
    (`center_crop`) its own centre crop. Raises UserError where it has no torchvision backend or
    gives another shape.
    """
    square = {"height": size, "width": size}
    values, name = processor.to_dict(), type(processor).__name__
    crop = values.get("crop_pct")
    kept: dict[str, Any]
    if name == "TimmWrapperImageProcessor":
        data = processor.data_config
        resample = {"bilinear": 2, "bicubic": 3}.get(data["interpolation"], 3)
        kept, crop = (
            {"image_mean": list(data["mean"]), "image_std": list(data["std"])},
            data["crop_pct"],
        )
    else:
        # Training knows these two filters. EfficientNet's checkpoints say "nearest"; they were
        # trained with bicubic.
        resample = values["resample"] if values.get("resample") in (2, 3) else 3
        pixels = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        kept = {k: values[k] for k in pixels if values.get(k) is not None}
        if values.get("rescale_offset"):
            kept["image_mean"] = [m + 1 for m in kept["image_mean"]]
        if values.get("include_top"):  # divides by the deviation a second time
            kept["image_std"] = [s * s for s in kept["image_std"]]
    if center_crop:
        old, edges = values.get("crop_size") or {}, values.get("size") or {}
        edge = edges.get("shortest_edge") or edges.get("height")
        share = crop or (old["height"] / edge if values.get("do_center_crop") and edge else 0.875)
        processor = BitImageProcessor(
            size={"shortest_edge": round(size / share)}, crop_size=square, resample=resample, **kept
        )
    elif name in REPLACED:
        processor = ViTImageProcessor(size=square, resample=resample, **kept)
    else:
        changes = {
            "size": square,
            "crop_size": square,
            "do_center_crop": False,
            "do_resize": True,
            "resample": resample,
        }
        processor = type(processor)(**{**values, **changes})
    if processor.backend != "torchvision":
        raise UserError(
            f"{name}: the torchvision backend of the image processor is missing; install torchvision to fit torch"
        )
    shape = processor(images=torch.zeros(1, 3, 48, 40, dtype=torch.uint8), return_tensors="pt")[
        "pixel_values"
    ].shape
    if tuple(shape) != (1, 3, size, size):
        raise UserError(
            f"image_size: {name} makes {tuple(shape[-2:])} pixels of a picture and can't be set to {size}"
        )
    return processor
