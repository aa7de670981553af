"""A pretrained backbone with a new head, at the size it will train at, and the image processor that
belongs to it.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedModel,
    ViTImageProcessor,
)

from hf_cifar.errors import UserError
from hf_cifar.models.config import choose_class, label_settings, set_dropout, set_labels
from hf_cifar.models.efficientnet_lite0 import PYPI_LITE0, lite0_model, pretrained_lite0
from hf_cifar.models.image_size import check_size, native_size, set_image_size
from hf_cifar.models.inspect_repo import check_model_repo, resolve_model
from hf_cifar.models.processors import evaluation_processor
from hf_cifar.models.structure import head
from hf_cifar.recipe.fields import ModelKeys

log = logging.getLogger(__name__)


@dataclass
class Backbone:
    """A model ready to be adapted and the processor that will be saved with it."""

    model: PreTrainedModel
    processor: Any
    image_size: int
    license: str | None = None


def load_backbone(keys: ModelKeys, label_names: list[str]) -> Backbone:
    """The model that `keys` name, float32 on the CPU, with a new head for `label_names`. Raises
    UserError.
    """
    keys = _resolved(keys)
    if keys.from_scratch:
        model, processor, license = _from_scratch(keys, label_names)
    elif keys.model_name_or_path == PYPI_LITE0:
        model, processor, license = pretrained_lite0(keys, label_names)
    else:
        model, processor, license = _pretrained(keys, label_names)
    size = keys.image_size or native_size(model.config, processor)
    check_size(model, size, keys.model_name_or_path)
    if keys.image_size is not None:
        set_image_size(model, size)
    set_labels(model.config, label_names)
    if keys.head_init == "zero":
        _, linear = head(model)
        nn.init.zeros_(linear.weight)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
    processor = evaluation_processor(processor, size, keys.center_crop)
    return Backbone(model, processor, size, license)


def _resolved(keys: ModelKeys) -> ModelKeys:
    """A copy whose model name is a folder, an id without its revision, or the PyPI package's, with
    the revision beside it.
    """
    keys = dataclasses.replace(keys)
    if keys.model_name_or_path != PYPI_LITE0 and not (keys.from_scratch and keys.model_config):
        revision = None if keys.model_revision == "main" else keys.model_revision
        keys.model_name_or_path, found = resolve_model(keys.model_name_or_path, revision)
        keys.model_revision = found or "main"
    return keys


def skeleton(keys: ModelKeys) -> tuple[PreTrainedModel, int]:
    """The model that `keys` name, with ten classes, from its config alone, and its image side. On
    torch's meta device, no weight is loaded, drawn or stored. Raises UserError.
    """
    keys = _resolved(keys)
    keys.model_config = keys.model_config if keys.from_scratch else None
    labels = [str(i) for i in range(10)]
    with torch.device("meta"):
        if keys.model_name_or_path == PYPI_LITE0 and not keys.model_config:
            model, processor = lite0_model(keys, labels), None
        else:
            model, processor, _ = _from_scratch(keys, labels)
        size = keys.image_size or native_size(model.config, processor)
        check_size(model, size, keys.model_name_or_path)
        if keys.image_size is not None:
            set_image_size(model, size)
    return model, size


def _from_scratch(keys: ModelKeys, label_names: list[str]) -> tuple[PreTrainedModel, Any, None]:
    if keys.model_config:
        entries = dict(keys.model_config)
        kind = entries.pop("model_type", None)
        try:
            config = AutoConfig.for_model(kind, **entries, **label_settings(label_names))
        except (ValueError, TypeError, StrictDataclassError) as error:
            said = " ".join(str(error).split())
            raise UserError(
                f"model_config: can't build model_type {kind!r}: {said[:200]}"
            ) from None
        side = getattr(config, "image_size", None) or 224
        processor = ViTImageProcessor(resample=3, size={"height": side, "width": side})
    else:
        config = _auto_config(keys, **label_settings(label_names))
        processor = _processor(keys)
    if keys.image_size is not None and hasattr(config, "image_size"):
        config.image_size = keys.image_size
    set_dropout(config, keys)
    if not choose_class(config):
        raise UserError(
            f"model_config: model_type {config.model_type!r} has no image classifier in transformers"
        )
    try:
        return AutoModelForImageClassification.from_config(config), processor, None
    except Exception as error:  # sizes that do not fit fail in each family's own way
        said = " ".join(str(error).split())
        raise UserError(
            f"model_config: {config.model_type} can't be built ({type(error).__name__}): {said[:200]}"
        ) from None


def _auto_config(keys: ModelKeys, **labels: Any) -> Any:
    try:
        return AutoConfig.from_pretrained(
            keys.model_name_or_path, revision=keys.model_revision, trust_remote_code=False, **labels
        )
    except (OSError, ValueError) as error:
        raise UserError(_unreachable(keys, error)) from None


def _unreachable(keys: ModelKeys, error: Exception) -> str:
    name = keys.model_name_or_path
    if Path(name).is_dir():
        return f"model_name_or_path: {name}: not a model folder: {str(error).splitlines()[0][:160]}"
    return (
        f"model_name_or_path: {name}: no such folder, and the Hub gave no such model ({type(error).__name__});"
        f" name a local folder, `{PYPI_LITE0}`, or set `from_scratch: true` with a `model_config`"
    )


def _processor(keys: ModelKeys) -> Any:
    try:
        processor = AutoImageProcessor.from_pretrained(
            keys.model_name_or_path, revision=keys.model_revision, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"model_name_or_path: {keys.model_name_or_path}: no image processor (preprocessor_config.json):"
            f" {str(error).splitlines()[0][:160]}"
        ) from None
    return processor


def _pretrained(keys: ModelKeys, label_names: list[str]) -> tuple[PreTrainedModel, Any, str | None]:
    name = keys.model_name_or_path
    folder = Path(name)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        pickles = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pth", ".pt")]
        what = (
            f"only a pickle ({pickles[0]}); convert it to safetensors first"
            if pickles
            else "no weights (model.safetensors)"
        )
        raise UserError(f"model_name_or_path: {name}: {what}")
    check_model_repo(name, keys.model_revision, classifier=False)
    config = _auto_config(keys, **label_settings(label_names))
    set_dropout(config, keys)
    choose_class(config)
    try:
        model, info = AutoModelForImageClassification.from_pretrained(
            name,
            revision=keys.model_revision,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(_unreachable(keys, error)) from None
    except (
        Exception
    ) as error:  # safetensors raises its own type, which it does not export under a stable name
        if "safetensor" not in type(error).__name__.lower():
            raise
        raise UserError(
            f"model_name_or_path: {name}: model.safetensors is damaged: {error}"
        ) from None
    own = head(model)[0]
    wrong = [k if isinstance(k, str) else k[0] for k in info["mismatched_keys"]]
    lost = [
        k
        for k in (*wrong, *info["missing_keys"])
        if not k.startswith(own) and not k.endswith("num_batches_tracked")
    ]
    if lost:
        raise UserError(
            f"model_name_or_path: {name}: weights do not fit the config: {len(lost)} tensors are missing or of another shape,"
            f" first {lost[0]}"
        )
    if keys.head_init == "pretrained" and any(
        k.startswith(own) for k in (*wrong, *info["missing_keys"])
    ):
        raise UserError(
            f"head_init: {name} has no head for {len(label_names)} classes; use `zero` or `default`"
        )
    return model, _processor(keys), model_license(name, keys.model_revision)


def model_license(name: str, revision: str | None) -> str | None:
    """The licence that the model's card names, from the folder or the Hub; None where there is no
    card or no Hub.
    """
    from huggingface_hub import ModelCard, hf_hub_download

    try:
        card = (
            Path(name) / "README.md"
            if Path(name).is_dir()
            else Path(hf_hub_download(name, "README.md", revision=revision))
        )
        found = ModelCard.load(card).data.to_dict().get("license") if card.is_file() else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return found if isinstance(found, str) else None
