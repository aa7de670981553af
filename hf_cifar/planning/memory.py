"""What a run will take, before anything is loaded: memory on a GPU for each way to launch it, work,
hours, and the line to type.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from hf_cifar.errors import UserError
from hf_cifar.methods.table import METHODS
from hf_cifar.planning.model_sizes import Sizes, model_sizes
from hf_cifar.recipe.recipe import Recipe

TRAIN_IMAGES = {"uoft-cs/cifar10": 50_000, "sample": 2_000}  # CIFAR-10: Krizhevsky 2009
MARGIN = 0.9  # of a GPU's memory; the rest is for the driver, the allocator and the kernels
CONFIG_FILES = {"DDP": "ddp_8", "FSDP2": "fsdp2_8", "ZeRO-3": "zero3_8"}  # in recipes/accelerate


@dataclass(frozen=True)
class LaunchOption:
    """A way to launch a run, with the bytes that it takes on each GPU."""

    way: str
    checkpointing: bool
    parameters: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.parameters + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Hardware:
    """gpus: how many. memory: 1e9 bytes of each. peak: 1e12 FLOP/s of each. mfu: the share of the
    peak that training reaches.
    """

    gpus: int = 1
    memory: float = 80.0
    peak: float = 989.0
    mfu: float = 0.4


def launch_options(recipe: Recipe, gpus: int, bf16: bool) -> tuple[list[LaunchOption], Sizes]:
    """Return every way to launch the recipe, and the sizes without checkpointing.

    With checkpointing, one block at a time runs again and has all its activations then.
    """
    sizes = model_sizes(recipe, checkpointing=False, bf16=bf16)
    options = _options(recipe, sizes, False, sizes.copies, sizes.image, gpus, bf16)
    if METHODS[recipe.method](recipe).runs_backbone_once:
        return options, sizes
    try:
        checkpointed = model_sizes(recipe, checkpointing=True, bf16=bf16)
    except UserError:  # the family has no checkpointing
        if recipe.training.get("gradient_checkpointing"):
            raise
        return options, sizes
    # Autocast keeps its copies of weights that train until the pass ends; of frozen weights, a
    # block has its copies only while it runs.
    copies = sizes.copies * max(sizes.trainable / sizes.parameters, 1 / sizes.blocks)
    image = checkpointed.image + sizes.image / sizes.blocks
    return options + _options(recipe, sizes, True, copies, image, gpus, bf16), sizes


def _options(
    recipe: Recipe,
    sizes: Sizes,
    checkpointing: bool,
    copies: float,
    image: float,
    gpus: int,
    bf16: bool,
) -> list[LaunchOption]:
    """Return the ways to launch, with or without checkpointing.

    DDP splits nothing, and adds a bucket as large as the gradients. FSDP2 and ZeRO-3 split weights,
    gradients and optimizer state, and gather two blocks at a time. FSDP2 also keeps whole gradients
    while a batch is accumulated, in bfloat16, the type that accelerate reduces them in.
    """
    training, once = recipe.training, METHODS[recipe.method](recipe).runs_backbone_once
    batch = training["per_device_eval_batch_size" if once else "per_device_train_batch_size"]
    activations = image * batch * recipe.views_at_once
    whole = sizes.weights + copies + (sizes.gradients if recipe.ema_decay else 0)
    gradients, optimizer = sizes.gradients, sizes.optimizer
    options = [LaunchOption("single", checkpointing, whole, gradients, optimizer, activations)]
    if gpus == 1:
        return options
    options.append(LaunchOption("DDP", checkpointing, whole, 2 * gradients, optimizer, activations))
    if once or recipe.ema_decay or recipe.muon:  # these need whole weights
        return options
    bytes_each = 2 if bf16 else 4
    weights = sizes.weights / gpus + 2 * sizes.largest_block * bytes_each
    accumulates = training["gradient_accumulation_steps"] > 1
    accumulated = bytes_each * sizes.trainable if accumulates else 0
    for way, kept in (("FSDP2", accumulated), ("ZeRO-3", 0)):
        options.append(
            LaunchOption(
                way,
                checkpointing,
                weights,
                gradients / gpus + kept,
                optimizer / gpus,
                activations,
            )
        )
    return options


def work(
    recipe: Recipe, sizes: Sizes, checkpointing: bool, gpus: int, images: int | None
) -> tuple[int, float, float]:
    """Return (images an epoch, FLOPs an epoch, epochs); recomputation adds a forward pass.

    images: of the training split; None for those of a known data set. Raises UserError where their
    number is not known.
    """
    if images is None:
        known = TRAIN_IMAGES.get(recipe.dataset_name)
        if known is None:
            raise UserError(
                f"plan: how many images {recipe.dataset_name} has is not known before it is read;"
                " give --images N"
            )
        images = min(known, recipe.max_train_samples or known)
    count = round(images * (1 - recipe.validation_fraction))
    method = METHODS[recipe.method](recipe)
    flops = float(sizes.flops) * count
    if method.runs_backbone_once:
        return count, flops * (method.views or 1), 1.0
    epochs = recipe.training["num_train_epochs"]
    if recipe.training["max_steps"] > 0:
        epochs = recipe.training["max_steps"] * _batch(recipe, gpus) / count
    passes = method.passes(sizes.trainable / sizes.parameters) + checkpointing
    return count, flops * passes * recipe.views_at_once, epochs


def _batch(recipe: Recipe, gpus: int) -> int:
    """Return the images of an update."""
    training = recipe.training
    accumulated = training["gradient_accumulation_steps"]
    return training["per_device_train_batch_size"] * accumulated * gpus


def launch_line(recipe: Recipe, option: LaunchOption, typed: str, gpus: int) -> str:
    """Return what to type. `hf-cifar recipes copy accelerate` brings accelerate's files.

    typed: the recipe as the user named it.
    """
    words = ["hf_cifar" if option.way != "single" else "hf-cifar", "train", typed]
    for key, value in recipe.overrides.items():
        if key != "gradient_checkpointing":
            words += [f"--{key}", str(value)]
    if option.checkpointing != bool(recipe.training.get("gradient_checkpointing")):
        words += ["--gradient_checkpointing", str(option.checkpointing).lower()]
    if option.way == "single":
        return shlex.join(words)
    config = f"accelerate/{CONFIG_FILES[option.way]}.yaml"
    launcher = ["accelerate", "launch", "--config_file", config, "--num_processes", str(gpus), "-m"]
    return shlex.join(launcher + words)


def plan_lines(
    recipe: Recipe, typed: str, hardware: Hardware, images: int | None = None
) -> list[str]:
    """Return the plan as lines for a terminal. Raises UserError.

    typed: the recipe as the user named it. images: see `work`.
    """
    bf16 = recipe.training["bf16"] is not False  # a GPU takes it where the recipe leaves it open
    gpus, room = hardware.gpus, MARGIN * hardware.memory * 1e9
    options, sizes = launch_options(recipe, gpus, bf16)
    training = recipe.training
    lines = [
        f"{recipe.name}: {recipe.method}, {'bf16 autocast' if bf16 else 'fp32'}:"
        f" {sizes.parameters / 1e6:,.1f} M parameters, {sizes.trainable / 1e6:,.2f} M train;"
        f" batch {training['per_device_train_batch_size']}"
        f" x {training['gradient_accumulation_steps']} x {gpus} = {_batch(recipe, gpus):,};"
        f" {sizes.flops / 1e9:,.1f} GFLOPs an image forward",
        "",
        f"{'GB a GPU':<10}{'checkpointing':<15}{'weights':>9}{'gradients':>11}{'optimizer':>11}"
        f"{'activations':>13}{'total':>8}  in {hardware.memory:g} GB",
    ]
    for option in options:
        cells = (
            f"{option.parameters / 1e9:>9.2f}{option.gradients / 1e9:>11.2f}"
            f"{option.optimizer / 1e9:>11.2f}{option.activations / 1e9:>13.2f}"
            f"{option.total / 1e9:>8.2f}"
        )
        checkpointing = "yes" if option.checkpointing else "no"
        verdict = "fits" if option.total <= room else "does not fit"
        lines.append(f"{option.way:<10}{checkpointing:<15}{cells}  {verdict}")
    lines += [
        "",
        "Worked out, not measured. A tenth of the memory is left for driver, allocator, kernels.",
    ]
    fitting = [option for option in options if option.total <= room]
    if not fitting:
        remedy = "lower per_device_train_batch_size, or take `--method lora` or more GPUs"
        return [*lines, f"Nothing fits: {remedy}."]
    choice = fitting[0]
    if gpus > 1 and choice.way == "single":  # what fits on one GPU is copied to all, not split
        choice = next(option for option in fitting if option.way != "single")
    count, flops, epochs = work(recipe, sizes, choice.checkpointing, gpus, images)
    speed = hardware.peak * 1e12 * hardware.mfu * gpus
    lines.append(
        f"{count:,} images: {flops:.2e} FLOPs an epoch, {epochs:.4g} epochs:"
        f" {flops * epochs / speed / 3600:.2g} hours at {hardware.mfu:.0%} of"
        f" {hardware.peak:g} TFLOP/s on {gpus} GPU{'s' if gpus > 1 else ''}"
    )
    return [*lines, launch_line(recipe, choice, typed, gpus)]
