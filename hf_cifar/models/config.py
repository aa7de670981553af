"""The config of a model: made from a file, with the labels, dropout and class of a run."""

from __future__ import annotations

from typing import Any, Final

from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoConfig

from hf_cifar.data.deep_pixels import PixelRange
from hf_cifar.errors import UserError
from hf_cifar.models.model_files import ModelFiles
from hf_cifar.recipe.fields import ModelKeys

# The `problem_type` of any number of labels a picture.
MULTI_LABEL: Final = "multi_label_classification"


def load_config(files: ModelFiles, **changes: Any) -> Any:
    """Return the model's config with `changes`. Raises UserError."""
    with files.for_library("its config.json can't be used") as folder:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **changes)
    config.name_or_path = files.repo
    return config


def label_settings(label_names: list[str]) -> dict[str, Any]:
    """Return the keys of a config that give a model these classes."""
    return {
        "num_labels": len(label_names),
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: i for i, name in enumerate(label_names)},
    }


def set_labels(config: Any, label_names: list[str]) -> None:
    """Write label names into a config.

    timm's wrapper keeps labels of its own, and would save those. Tasks that the model has answered
    before are forgotten.
    """
    config.__dict__.pop("tasks", None)
    config.id2label = dict(enumerate(label_names))
    config.label2id = {name: i for i, name in enumerate(label_names)}
    if config.model_type == "timm_wrapper":
        config.label_names = list(label_names)
        if hasattr(config, "pretrained_cfg"):
            # From it `pipeline` would make timm's image processor, and never look for ours.
            del config.pretrained_cfg


def set_dropout(config: Any, keys: ModelKeys) -> None:
    """Write `dropout` and `drop_path_rate` into a config, under the family's name for them.

    Raises UserError where the family has none.
    """
    names = {  # our key -> in transformers' transformers, in its EfficientNet, in timm
        "dropout": ("hidden_dropout_prob", "dropout_rate", "drop_rate"),
        "drop_path_rate": ("drop_path_rate", "drop_connect_rate", "drop_path_rate"),
    }
    for key, (*transformers_names, timm_name) in names.items():
        value = getattr(keys, key)
        if value is None:
            continue
        if config.model_type == "timm_wrapper":
            config.model_args = {**(config.model_args or {}), timm_name: value}
            continue
        known = [name for name in transformers_names if hasattr(config, name)]
        if not known:
            raise UserError(f"{key}: {config.model_type} has none; leave it out")
        setattr(config, known[0], value)


def choose_class(config: Any, where: str) -> None:
    """Write into a config which class of image classifier to build, where the family has several.

    The first is chosen: DeiT's second has another head for distillation, and a checkpoint of it
    gives its backbone.
    Raises UserError, which begins with `where`, for a family without an image classifier.
    """
    classes: Any = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(type(config), None)
    if classes is None:
        raise UserError(
            f"{where}: model_type {config.model_type!r} has no image classifier in transformers"
        )
    if isinstance(classes, tuple):
        config.architectures = [classes[0].__name__]


def write_pixel_range(config: Any, pixel_range: PixelRange | None) -> None:
    """Write into a config how pictures with more than 8 bits a channel must be converted."""
    if pixel_range is not None:
        config.deep_pixels = pixel_range.to_config()


def read_pixel_range(config: Any, where: str) -> PixelRange | None:
    """Return what `write_pixel_range` wrote into a config.

    Raises UserError, which begins with `where`, for another value.
    """
    try:
        return PixelRange.from_config(getattr(config, "deep_pixels", None))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
