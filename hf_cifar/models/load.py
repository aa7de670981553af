"""A backbone with a new head, at the size it will train at, with the image processor that belongs
to it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PreTrainedModel,
    ViTImageProcessor,
)

from hf_cifar.errors import UserError
from hf_cifar.models.card import card_license, read_card
from hf_cifar.models.check_config import check_config
from hf_cifar.models.config import (
    choose_class,
    label_settings,
    load_config,
    set_dropout,
    set_labels,
)
from hf_cifar.models.efficientnet_lite0 import PYPI_LITE0, lite0_model, pretrained_lite0
from hf_cifar.models.image_size import check_size, native_size, set_image_size
from hf_cifar.models.inspect_repo import CARD, fetch_model, resolve_model
from hf_cifar.models.model_files import library_errors
from hf_cifar.models.pretrained import at_most, load_weights
from hf_cifar.models.processors import evaluation_processor, load_processor
from hf_cifar.models.structure import head
from hf_cifar.recipe.fields import ModelKeys

# Of a model that is described without weights; the largest image classifiers have 2,000 tensors.
MAX_TENSORS, MAX_ELEMENTS = 10_000, 10**13
# Keys of a config that say how a run's own answers are to be used, not those of a run that begins
# with its model.
CHOSEN_BY_A_RUN = ("operating_point", "positive_class", "reject")


@dataclass
class Backbone:
    """A model ready to be adapted, the processor that will be saved with it, and its licence."""

    model: PreTrainedModel
    processor: Any
    image_size: int
    license: str | None = None


def load_backbone(keys: ModelKeys, label_names: list[str]) -> Backbone:
    """Return the model that `keys` name, float32 on the CPU, with a new head for `label_names`.

    Raises UserError for a model that can't be had, is damaged, or doesn't fit the keys.
    """
    keys = resolved(keys)
    name = keys.model_name_or_path
    if keys.from_scratch:
        model, processor, license = *_from_scratch(keys, label_names), None
    elif name == PYPI_LITE0:
        model, processor, license = pretrained_lite0(keys, label_names)
    else:
        model, processor, license = _pretrained(keys, label_names)
    size = _set_size(model, processor, keys)
    set_labels(model.config, label_names)
    for key in CHOSEN_BY_A_RUN:
        vars(model.config).pop(key, None)
    if keys.head_init == "zero":
        _, linear = head(model)
        nn.init.zeros_(linear.weight)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
    with library_errors(f"model_name_or_path: {name}", "its image processor can't be used"):
        processor = evaluation_processor(processor, size, keys.center_crop)
    return Backbone(model, processor, size, license)


def skeleton(keys: ModelKeys) -> tuple[PreTrainedModel, int]:
    """Return the model that `keys` name, with ten classes, from its config alone, and its image
    side in pixels.

    The model lies on torch's meta device, and no weight is loaded, drawn or stored.
    Raises UserError for a config that can't be had or built.
    """
    keys = resolved(keys)
    keys.model_config = keys.model_config if keys.from_scratch else None
    labels = [str(i) for i in range(10)]
    processor: Any = None
    if keys.model_name_or_path == PYPI_LITE0 and not keys.model_config:
        with torch.device("meta"):
            model = lite0_model(keys, labels)
    else:
        model, processor = _from_scratch(keys, labels, on_meta=True)
    with torch.device("meta"):
        size = _set_size(model, processor, keys)
    return model, size


def resolved(keys: ModelKeys) -> ModelKeys:
    """Return a copy that names a folder, the PyPI package, or a repo and its revision."""
    keys = dataclasses.replace(keys)
    if keys.model_name_or_path != PYPI_LITE0 and not (keys.from_scratch and keys.model_config):
        name, revision = resolve_model(keys.model_name_or_path, revision_of(keys))
        keys.model_name_or_path, keys.model_revision = name, revision or "main"
    return keys


def revision_of(keys: ModelKeys) -> str | None:
    return None if keys.model_revision == "main" else keys.model_revision


def _set_size(model: PreTrainedModel, processor: Any, keys: ModelKeys) -> int:
    """Set the model to the image side that the recipe asks for, if it does; return its side."""
    name = keys.model_name_or_path
    with library_errors(f"model_name_or_path: {name}", "its image size can't be used"):
        size = keys.image_size or native_size(model.config, processor, name)
        check_size(model, size, name)
        if keys.image_size is not None:
            set_image_size(model, size)
    return size


def _from_scratch(
    keys: ModelKeys, label_names: list[str], on_meta: bool = False
) -> tuple[PreTrainedModel, Any]:
    """Return a model with random weights, or on torch's meta device, and its processor."""
    config, processor, where = described(keys, label_names)
    choose_class(config, where)
    build = AutoModelForImageClassification.from_config
    return build_model(config, where, build, on_meta=on_meta), processor


def described(keys: ModelKeys, label_names: list[str]) -> tuple[Any, Any, str]:
    """Return the config that `keys` describe, without weights, at their image size and with their
    dropout; its processor; and what messages call its place.
    """
    if keys.model_config:
        where = "model_config"
        config, processor = _config_from_recipe(keys.model_config, label_names)
    else:
        files = fetch_model(
            keys.model_name_or_path, revision_of(keys), classifier=False, weights=False
        )
        where = f"model_name_or_path: {files.name}"
        config, processor = load_config(files, **label_settings(label_names)), load_processor(files)
    if keys.image_size is not None and hasattr(config, "image_size"):
        config.image_size = keys.image_size
    config.dtype = torch.float32  # a config names the type that its weights are stored in
    set_dropout(config, keys)
    return config, processor, where


def build_model(
    config: Any, where: str, build: Callable[[Any], Any], *, on_meta: bool = False
) -> Any:
    """Return the model that `build` makes of a config, with random weights or on torch's meta
    device. Raises UserError, which begins with `where`, for one that can't be built.
    """
    with library_errors(where, f"{config.model_type} can't be built"):
        model = _build_on_meta(config, where, build)
        memory = psutil.virtual_memory().available
        if not on_meta and (size := sum(4 * p.numel() for p in model.parameters())) > memory:
            raise UserError(
                f"{where}: describes a model of {size / 1e9:,.0f} GB, and {memory / 1e9:,.0f} GB of"
                " memory are free; make it smaller"
            )
        return model if on_meta else build(config)


def _build_on_meta(config: Any, where: str, build: Callable[[Any], Any]) -> PreTrainedModel:
    """Return the model without weights. Raises UserError for a config of no end of layers."""
    too_large = f"{where}: describes a model that is too large to be one; make it smaller"
    with (
        torch.random.fork_rng(devices=[]),  # no number may be drawn that the real weights need
        torch.device("meta"),
        at_most(MAX_TENSORS, MAX_ELEMENTS, too_large),
    ):
        return build(copy.deepcopy(config))


def _config_from_recipe(entries: dict[str, Any], label_names: list[str]) -> tuple[Any, Any]:
    """Return the config that a recipe's `model_config` describes, and a processor to go with it."""
    check_config(entries, "model_config")
    entries = dict(entries)
    kind = entries.pop("model_type", None)
    with library_errors("model_config", f"can't build model_type {kind!r}"):
        config = AutoConfig.for_model(kind, **entries, **label_settings(label_names))
    side = getattr(config, "image_size", None) or 224
    return config, ViTImageProcessor(resample=3, size={"height": side, "width": side})


def _pretrained(keys: ModelKeys, label_names: list[str]) -> tuple[PreTrainedModel, Any, str | None]:
    files = fetch_model(keys.model_name_or_path, revision_of(keys), classifier=False)
    config = load_config(files, **label_settings(label_names))
    set_dropout(config, keys)
    choose_class(config, files.name)
    model, head_is_new = load_weights(files, config, new_head=True)
    if keys.head_init == "pretrained" and head_is_new:
        raise UserError(
            f"head_init: {files.name} has no head for {len(label_names)} classes;"
            " use `zero` or `default`"
        )
    return model, load_processor(files), card_license(read_card(files.folder / CARD))
