"""The image processor of a backbone, set to see the whole picture at the size the model takes."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoImageProcessor, BitImageProcessor, ViTImageProcessor

from hf_cifar.errors import UserError
from hf_cifar.models.check_config import MAX_SIDE
from hf_cifar.models.model_files import ModelFiles, library_errors

# These processors can't resize a whole picture of any shape, or work one PIL image at a time, or
# normalise twice and so can't be asked to resize only. A ViTImageProcessor with the right numbers
# computes the same.
REPLACED = ("ConvNextImageProcessor", "TimmWrapperImageProcessor", "EfficientNetImageProcessor")
PIXEL_SETTINGS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
BILINEAR, BICUBIC = 2, 3  # PIL's numbers


def load_processor(files: ModelFiles) -> Any:
    """Return the model's image processor as its files describe it. Raises UserError."""
    if len(files.configs) == 1 and "pretrained_cfg" not in files.configs["config.json"]:
        raise UserError(f"{files.name}: no image processor (preprocessor_config.json)")
    with files.for_library("its image processor can't be used") as folder:
        return AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)


def load_evaluation_processor(files: ModelFiles) -> tuple[Any, int]:
    """Return the processor that `pipeline` would use, able to take uint8 tensors, and the side of
    its square output in pixels.

    Raises UserError for a processor that is damaged or makes no square images.
    """
    processor = load_processor(files)
    with library_errors(files.name, "its image processor can't be used"):
        if type(processor).__name__ == "TimmWrapperImageProcessor":  # takes one PIL image at a time
            side = processor.data_config["input_size"][-1]
            processor = evaluation_processor(processor, side, center_crop=True)
        outputs = [
            _process(processor, torch.arange(3 * height * width).view(1, 3, height, width) % 251)
            for height, width in ((64, 64), (40, 48))
        ]
    height, width = outputs[0].shape[-2:]
    if {tuple(output.shape) for output in outputs} != {(1, 3, height, height)} or width > MAX_SIDE:
        shapes = " and ".join(str(tuple(output.shape)) for output in outputs)
        raise UserError(f"{files.name}: its image processor makes {shapes} instead of one square")
    if not all(output.isfinite().all() for output in outputs):
        raise UserError(f"{files.name}: its image processor makes pixels that are not finite")
    return processor, height


def evaluation_processor(processor: Any, size: int, center_crop: bool) -> Any:
    """Return the processor set to give `size` pixels a side: the whole picture squeezed into them,
    or with `center_crop` its own centre crop.

    Raises UserError where it has no torchvision backend or gives another shape.
    """
    square = {"height": size, "width": size}
    values, name = processor.to_dict(), type(processor).__name__
    crop_share = values.get("crop_pct")
    settings: dict[str, Any]
    if name == "TimmWrapperImageProcessor":
        data = processor.data_config
        resample = {"bilinear": BILINEAR, "bicubic": BICUBIC}.get(data["interpolation"], BICUBIC)
        settings = {"image_mean": list(data["mean"]), "image_std": list(data["std"])}
        crop_share = data["crop_pct"]
    else:
        # Training knows these two filters. EfficientNet's checkpoints say "nearest", but were
        # trained with bicubic.
        resample = values.get("resample")
        resample = resample if resample in (BILINEAR, BICUBIC) else BICUBIC
        settings = {key: values[key] for key in PIXEL_SETTINGS if values.get(key) is not None}
        if values.get("rescale_offset"):
            settings["image_mean"] = [mean + 1 for mean in settings["image_mean"]]
        if values.get("include_top"):  # divides by the deviation a second time
            settings["image_std"] = [std * std for std in settings["image_std"]]
    if center_crop:
        crop_share = crop_share or _crop_share(values)
        processor = BitImageProcessor(
            size={"shortest_edge": round(size / crop_share)},
            crop_size=square,
            resample=resample,
            **settings,
        )
    elif name in REPLACED:
        processor = ViTImageProcessor(size=square, resample=resample, **settings)
    else:
        whole = {"size": square, "crop_size": square, "do_center_crop": False, "do_resize": True}
        processor = type(processor)(**{**values, **whole, "resample": resample})
    if processor.backend != "torchvision":
        raise UserError(
            f"{name}: the torchvision backend of the image processor is missing;"
            " install torchvision to fit torch"
        )
    output = _process(processor, torch.zeros(1, 3, 48, 40))
    if output.shape != (1, 3, size, size):
        raise UserError(
            f"image_size: {name} makes {tuple(output.shape[-2:])} pixels of a picture and can't be"
            f" set to {size}"
        )
    return processor


def _process(processor: Any, images: torch.Tensor) -> torch.Tensor:
    return processor(images=images.to(torch.uint8), return_tensors="pt")["pixel_values"]


def _crop_share(values: dict[str, Any]) -> float:
    """Return the share of a resized picture's side that a processor's crop keeps."""
    crop, size = values.get("crop_size") or {}, values.get("size") or {}
    edge = size.get("shortest_edge") or size.get("height")
    return crop["height"] / edge if values.get("do_center_crop") and edge else 0.875
