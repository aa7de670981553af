"""What a run writes into a model's config: labels, dropout, the class to load."""

from __future__ import annotations

from typing import Any

from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

from hf_cifar.errors import UserError
from hf_cifar.recipe.fields import ModelKeys


def label_settings(label_names: list[str]) -> dict[str, Any]:
    return {
        "num_labels": len(label_names),
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: i for i, name in enumerate(label_names)},
    }


def set_labels(config: Any, label_names: list[str]) -> None:
    """Label names into the config, also where timm's wrapper keeps labels (and a processor) of its
    own and would save those.
    """
    config.id2label = dict(enumerate(label_names))
    config.label2id = {name: i for i, name in enumerate(label_names)}
    if config.model_type == "timm_wrapper":
        config.label_names = list(label_names)
        if hasattr(
            config, "pretrained_cfg"
        ):  # with it, `pipeline` would make timm's processor and never see ours
            del config.pretrained_cfg


def set_dropout(config: Any, keys: ModelKeys) -> None:
    """`dropout` and `drop_path_rate` into the config, under the family's name for them. Raises
    UserError where it has none.
    """
    names = {  # what our key is called: by transformers' transformers, its EfficientNet, timm
        "dropout": ("hidden_dropout_prob", "dropout_rate", "drop_rate"),
        "drop_path_rate": ("drop_path_rate", "drop_connect_rate", "drop_path_rate"),
    }
    for key, (own, efficientnet, timm) in names.items():
        value = getattr(keys, key)
        if value is None:
            continue
        if config.model_type == "timm_wrapper":
            config.model_args = {**(config.model_args or {}), timm: value}
        elif (
            name := next((n for n in (own, efficientnet) if hasattr(config, n)), None)
        ) is not None:
            setattr(config, name, value)
        else:
            raise UserError(f"{key}: {config.model_type} has none; leave it out")


def choose_class(config: Any) -> bool:
    """Whether transformers has an image classifier for this config. Of two (DeiT's second has two
    heads, for distillation)
    the first is written into the config: a checkpoint of the other gives its backbone.
    """
    classes: Any = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(type(config), None)
    if isinstance(classes, tuple):
        config.architectures = [classes[0].__name__]
    return classes is not None
