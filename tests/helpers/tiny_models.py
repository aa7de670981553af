"""A tiny model of each family, as a folder with the image processor that the family's own
checkpoints have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageClassification,
    BitImageProcessor,
    ConvNextConfig,
    ConvNextImageProcessor,
    DeiTConfig,
    DeiTImageProcessor,
    Dinov2Config,
    EfficientNetConfig,
    EfficientNetImageProcessor,
    ResNetConfig,
    SwinConfig,
    TimmWrapperConfig,
    ViTConfig,
    ViTImageProcessor,
)

SIZE = 32
IMAGENET: dict[str, Any] = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
TRANSFORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": SIZE,
    "patch_size": 8,
}
TIMM = {
    "input_size": [3, SIZE, SIZE],
    "crop_pct": 0.9,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.25],
    "fixed_input_size": False,
}
FAMILIES = (
    "vit",
    "deit",
    "dinov2",
    "swin",
    "convnext",
    "resnet",
    "efficientnet",
    "timm",
    "timm_vit",
)
# Residual blocks of each; timm's first stage is a single convolution, which is not a block.
BLOCKS = {
    "vit": 3,
    "deit": 3,
    "dinov2": 3,
    "swin": 4,
    "convnext": 3,
    "resnet": 3,
    "efficientnet": 3,
    "timm": 4,
    "timm_vit": 3,
}


def config(family: str) -> Any:
    if family == "vit":
        return ViTConfig(**TRANSFORMER)
    if family == "deit":
        return DeiTConfig(**TRANSFORMER)
    if family == "dinov2":
        return Dinov2Config(**TRANSFORMER, mlp_ratio=2)
    if family == "swin":
        return SwinConfig(
            image_size=SIZE,
            patch_size=4,
            embed_dim=16,
            depths=[2, 2],
            num_heads=[2, 4],
            window_size=4,
        )
    if family == "convnext":
        return ConvNextConfig(image_size=SIZE, hidden_sizes=[16, 32], depths=[1, 2], num_stages=2)
    if family == "resnet":
        return ResNetConfig(
            embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2], layer_type="basic"
        )
    if family == "efficientnet":
        return EfficientNetConfig(
            image_size=SIZE,
            width_coefficient=0.25,
            hidden_dim=320,
            depth_coefficient=1.0,
            kernel_sizes=[3, 3],
            in_channels=[32, 64],
            out_channels=[64, 96],
            depthwise_padding=[],
            strides=[1, 2],
            num_block_repeats=[1, 2],
            expand_ratios=[1, 4],
        )
    if family == "timm":
        return TimmWrapperConfig(architecture="test_efficientnet", pretrained_cfg=TIMM)
    return TimmWrapperConfig(
        architecture="test_vit", pretrained_cfg=TIMM, model_args={"img_size": SIZE, "depth": 3}
    )


def processor(family: str) -> Any:
    """Return the processor that the family's checkpoints on the Hub have, scaled down; None for
    timm, which makes it from the model's config.
    """
    crop = {"height": SIZE, "width": SIZE}
    if family in ("vit", "swin"):
        return ViTImageProcessor(size=crop)
    if family == "deit":
        return DeiTImageProcessor(size={"height": 36, "width": 36}, crop_size=crop, **IMAGENET)
    if family == "dinov2":
        return BitImageProcessor(size={"shortest_edge": 36}, crop_size=crop, **IMAGENET)
    if family in ("convnext", "resnet"):
        return ConvNextImageProcessor(size={"shortest_edge": SIZE}, crop_pct=0.875, **IMAGENET)
    if family == "efficientnet":
        # Of google/efficientnet-b0, as are include_top and resample.
        std = [0.47853944, 0.4732864, 0.47434163]
        return EfficientNetImageProcessor(
            size=crop,
            image_mean=IMAGENET["image_mean"],
            image_std=std,
            include_top=True,
            resample=0,
        )
    return None


def build(family: str, labels: int = 10, seed: int = 0) -> Any:
    """Return the model, with weights and batch-norm statistics that make its answers differ from
    image to image.
    """
    torch.manual_seed(seed)
    settings = config(family)
    settings.num_labels = labels
    if family == "deit":
        # There is a second architecture, for distillation.
        settings.architectures = ["DeiTForImageClassification"]
    model = AutoModelForImageClassification.from_config(settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 4:
                torch.nn.init.kaiming_normal_(parameter)
            elif parameter.ndim >= 2:
                parameter.add_(torch.randn_like(parameter) * 0.05)
            if "layer_scale" in name or "lambda1" in name:  # ConvNeXt's blocks start near zero
                parameter.fill_(1.0)
        norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for module in norms:
            module.momentum = 1.0
            module.weight.uniform_(0.5, 1.5)  # EfficientNet's are drawn around zero
        # The statistics of a batch stand for pretrained ones.
        model.train()(pixel_values=torch.randn(16, 3, SIZE, SIZE))
        for module in norms:
            module.momentum = 0.1
    return model.eval()


def save(family: str, folder: Path, **kwargs: Any) -> Path:
    """Write a model folder like a Hub snapshot of the family; return it."""
    build(family, **kwargs).save_pretrained(folder)
    image_processor = processor(family)
    if image_processor is not None:
        image_processor.save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    """Set keys of a model folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
