"""What a run will take, before anything is loaded: memory a GPU for each way to launch it, work,
hours, and the line to type.

The model is built from its config on torch's meta device and runs there in name only (fake
tensors), so that what autograd keeps is what it would keep, and nothing takes memory.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import Trainer

from hf_cifar.errors import UserError
from hf_cifar.methods.parameter_groups import parameter_groups
from hf_cifar.methods.trainable import adapt
from hf_cifar.models.load import skeleton
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.training.arguments import training_arguments
from hf_cifar.training.sharding import wrap_classes

CIFAR10_TRAIN = 50_000  # images (Krizhevsky 2009)
MARGIN = 0.9  # of a GPU's memory: the rest is the driver's, the allocator's and the kernels'


@dataclass(frozen=True)
class Sizes:
    """Bytes of one process that has it all: weights (float32), gradients, optimizer state,
    autocast's copies of the weights and what autograd keeps of one image; FLOPs of one image
    forward; parameters in all, those that train, and those of the largest block; how many blocks
    there are.
    """

    parameters: int
    trainable: int
    largest_block: int
    blocks: int
    weights: int
    gradients: int
    optimizer: int
    copies: int
    image: float
    flops: int


@dataclass(frozen=True)
class LaunchOption:
    """A way to launch the run, with bytes a GPU."""

    way: str
    checkpointing: bool
    parameters: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.parameters + self.gradients + self.optimizer + self.activations


def fake(model: nn.Module) -> None:
    """Give a model of the meta device fake CPU tensors, in place, inside a FakeTensorMode."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(empty, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def kept_by_autograd(model: nn.Module, size: int, batch: int, bf16: bool) -> int:
    """Bytes that a forward pass in training keeps for the backward pass, each storage once, without
    the parameters.
    """
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    found: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if (key := tensor.untyped_storage()._cdata) not in own:
            found[key] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        model(pixel_values=torch.randn(batch, 3, size, size)).logits.float().sum()
    return sum(t.untyped_storage().nbytes() for t in found.values())


def sizes(recipe: Recipe, *, checkpointing: bool, bf16: bool) -> Sizes:
    """`Sizes` of the recipe's model, built from its config alone. Raises UserError."""
    bare, size = skeleton(recipe)
    with torch.device("meta"):
        model: Any = adapt(bare, recipe, "base")
    parameters = list(model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    blocks = [m for m in model.modules() if type(m).__name__ in wrap_classes(model)]
    largest = max((sum(p.numel() for p in b.parameters()) for b in blocks), default=0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake(model)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval()(pixel_values=torch.randn(1, 3, size, size))
        flops = counter.get_total_flops()
        if (
            recipe.method == "linear"
        ):  # the backbone goes forward once, without autograd; the heads train side by side
            trainable *= len(recipe.probe_learning_rates or [0]) * len(
                recipe.probe_weight_decays or [0]
            )
            image = _forward_peak(model, size, bf16)
            copies = (
                2 * largest if bf16 else 0
            )  # without autograd, autocast's copies go as soon as they were used
        else:
            model.train()
            if checkpointing:
                _checkpoint(model)
            two, four = (kept_by_autograd(model, size, n, bf16) for n in (2, 4))
            image, copies = (
                (four - two) / 2,
                max(0, 2 * two - four),
            )  # what does not grow with the batch
    state = optimizer_bytes(recipe, model)
    return Sizes(
        parameters=sum(p.numel() for p in parameters),
        trainable=trainable,
        largest_block=largest,
        blocks=len(blocks),
        weights=4 * sum(p.numel() for p in parameters),
        gradients=4 * trainable,
        optimizer=state * trainable,
        copies=copies,
        image=image,
        flops=flops,
    )


def _forward_peak(model: nn.Module, size: int, bf16: bool) -> float:
    """Bytes of the largest output of a module for one image: with no autograd, little more than it
    lives at a time.
    """
    most = 0

    def look(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal most
        if isinstance(output, torch.Tensor):
            most = max(most, output.untyped_storage().nbytes())

    hooks = [m.register_forward_hook(look) for m in model.modules()]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        model.eval()(pixel_values=torch.randn(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return 3.0 * most  # an input, an output and a residual beside them


def _checkpoint(model: Any) -> None:
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError:
        raise UserError(
            f"gradient_checkpointing: {type(model).__name__} has none; leave it out"
        ) from None


def optimizer_bytes(recipe: Recipe, model: nn.Module) -> int:
    """Bytes of optimizer state a trained parameter, seen on one step of the real optimizer with a
    matrix of 64 x 64.
    """
    args = training_arguments(recipe)
    kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)  # type: ignore[arg-type]
    if {"params", "model", "optimizer_dict"} & set(kwargs):
        raise UserError(
            f"optim: {args.optim} chooses its own parameters, and what it keeps isn't known before; name another"
        )
    probe = nn.Parameter(torch.zeros(64, 64))
    probe.grad = torch.ones_like(probe)
    optimizer = kind([probe], **kwargs)
    optimizer.step()
    held = [v for v in optimizer.state[probe].values() if isinstance(v, torch.Tensor) and v.ndim]
    moments = sum(v.numel() * v.element_size() for v in held) // probe.numel()
    if recipe.muon:  # one momentum for the blocks' matrices, most of what trains
        groups = parameter_groups(model, 1.0, 0.0, None, 1.0, muon=True)
        count = {
            muon: sum(p.numel() for g in groups if g["muon"] is muon for p in g["params"])
            for muon in (True, False)
        }
        moments = round((4 * count[True] + moments * count[False]) / max(1, sum(count.values())))
    return moments


def launch_options(recipe: Recipe, gpus: int, bf16: bool) -> tuple[list[LaunchOption], Sizes]:
    """Every way to launch the recipe, and the sizes without checkpointing.

    A GPU has all of what a way does not split, and its share of what it does: DDP splits nothing
    and adds a bucket as large as the gradients; FSDP2 and ZeRO-3 split weights, gradients and
    optimizer state and gather two blocks at a time, and FSDP2 keeps whole gradients (in what
    accelerate reduces them in, bfloat16) while a batch is accumulated. With checkpointing one block
    at a time is run again, and has all its activations then.
    """
    t, linear = recipe.training, recipe.method == "linear"
    plain = sizes(recipe, checkpointing=False, bf16=bf16)
    found = _ways(recipe, plain, False, plain.copies, plain.image, gpus, bf16)
    if linear:
        return found, plain
    try:
        less = sizes(recipe, checkpointing=True, bf16=bf16)
    except UserError:  # the family has none
        if t.get("gradient_checkpointing"):
            raise
        return found, plain
    # Autocast keeps its copies of weights that train until the pass ends; of the others a block has
    # its own while it runs.
    copies = plain.copies * max(plain.trainable / plain.parameters, 1 / plain.blocks)
    return found + _ways(
        recipe, plain, True, copies, less.image + plain.image / plain.blocks, gpus, bf16
    ), plain


def _ways(
    recipe: Recipe,
    s: Sizes,
    checkpointing: bool,
    copies: float,
    image: float,
    gpus: int,
    bf16: bool,
) -> list[LaunchOption]:
    t, linear = recipe.training, recipe.method == "linear"
    activations = (
        image * t["per_device_eval_batch_size" if linear else "per_device_train_batch_size"]
    )
    whole = s.weights + copies + (s.gradients if recipe.ema_decay else 0)
    found = [LaunchOption("single", checkpointing, whole, s.gradients, s.optimizer, activations)]
    if gpus == 1:
        return found
    found.append(
        LaunchOption("DDP", checkpointing, whole, 2 * s.gradients, s.optimizer, activations)
    )
    if not (linear or recipe.ema_decay or recipe.muon):
        half = 2 if bf16 else 4
        held = s.weights / gpus + 2 * s.largest_block * half
        shares = s.gradients / gpus, s.optimizer / gpus, activations
        kept = half * s.trainable if t["gradient_accumulation_steps"] > 1 else 0
        found.append(LaunchOption("FSDP2", checkpointing, held, shares[0] + kept, *shares[1:]))
        found.append(LaunchOption("ZeRO-3", checkpointing, held, *shares))
    return found


def work(
    recipe: Recipe, s: Sizes, checkpointing: bool, gpus: int, images: int | None
) -> tuple[int, float, float]:
    """(images an epoch, FLOPs an epoch, epochs). Training takes three times the forward pass, twice
    where frozen weights get no gradients; recomputation adds one; `linear` goes forward once over
    all images. Raises UserError where nobody knows how many images there are.
    """
    if images is None:
        known = {"uoft-cs/cifar10": CIFAR10_TRAIN, "sample": 2000}.get(recipe.dataset_name)
        if known is None:
            raise UserError(
                f"plan: how many images {recipe.dataset_name} has is not known before it is read; say --images N"
            )
        images = min(known, recipe.max_train_samples or known)
    count = round(images * (1 - recipe.validation_fraction))
    t = recipe.training
    batch = t["per_device_train_batch_size"] * t["gradient_accumulation_steps"] * gpus
    epochs = t["max_steps"] * batch / count if t["max_steps"] > 0 else t["num_train_epochs"]
    if recipe.method == "linear":
        return count, float(s.flops) * count * (recipe.feature_views or 1), 1.0
    share = s.trainable / s.parameters
    passes = (
        2.0 if recipe.method == "lora" else 1 + 2 * share if recipe.method == "partial" else 3.0
    )
    return count, float(s.flops) * count * (passes + checkpointing), epochs


def launch_line(recipe: Recipe, row: LaunchOption, typed: str, gpus: int) -> str:
    """What to type for a way; accelerate's files come with `hf-cifar recipes copy accelerate`."""
    words = ["hf_cifar" if row.way != "single" else "hf-cifar", "train", typed]
    words += [
        word
        for k, v in recipe.overrides.items()
        if k != "gradient_checkpointing"
        for word in (f"--{k}", str(v))
    ]
    if row.checkpointing != bool(recipe.training.get("gradient_checkpointing")):
        words += ["--gradient_checkpointing", str(row.checkpointing).lower()]
    if row.way == "single":
        return shlex.join(words)
    file = {"DDP": "ddp_8", "FSDP2": "fsdp2_8", "ZeRO-3": "zero3_8"}[row.way]
    launcher = [
        "accelerate",
        "launch",
        "--config_file",
        f"accelerate/{file}.yaml",
        "--num_processes",
        str(gpus),
        "-m",
    ]
    return shlex.join(launcher + words)


def report(
    recipe: Recipe,
    typed: str,
    gpus: int,
    gpu_memory: float,
    peak: float,
    mfu: float,
    images: int | None,
) -> list[str]:
    """The plan as lines. typed: the recipe as the user named it. gpu_memory: 1e9 bytes a GPU. peak:
    1e12 FLOP/s a GPU, of which training reaches the share `mfu`. Raises UserError.
    """
    bf16 = recipe.training["bf16"] is not False  # on a GPU, where the recipe leaves it open
    ways, s = launch_options(recipe, gpus, bf16)
    t, room = recipe.training, MARGIN * gpu_memory
    batch = t["per_device_train_batch_size"] * t["gradient_accumulation_steps"] * gpus
    lines = [
        f"{recipe.name}: {recipe.method}, {'bf16 autocast' if bf16 else 'fp32'}: {s.parameters / 1e6:,.1f} M parameters,"
        f" {s.trainable / 1e6:,.2f} M train; batch {t['per_device_train_batch_size']} x {t['gradient_accumulation_steps']}"
        f" x {gpus} = {batch:,}; {s.flops / 1e9:,.1f} GFLOPs an image forward",
        "",
        f"{'GB a GPU':<10}{'checkpointing':<15}{'weights':>9}{'gradients':>11}{'optimizer':>11}{'activations':>13}{'total':>8}"
        f"  in {gpu_memory:g} GB",
    ]
    for r in ways:
        figures = (r.parameters, r.gradients, r.optimizer, r.activations, r.total)
        cells = [f"{v / 1e9:>{w}.2f}" for v, w in zip(figures, (9, 11, 11, 13, 8), strict=True)]
        fits = "fits" if r.total <= room * 1e9 else "does not fit"
        lines.append(f"{r.way:<10}{'yes' if r.checkpointing else 'no':<15}{''.join(cells)}  {fits}")
    chosen = next((r for r in ways if r.total <= room * 1e9), None)
    lines += [
        "",
        "Worked out, not measured; a tenth of the memory is left for driver, allocator and kernels.",
    ]
    if chosen is None:
        lines.append(
            "Nothing fits: lower per_device_train_batch_size, or take `--method lora` or more GPUs."
        )
        return lines
    if gpus > 1 and chosen.way == "single":  # what fits on one is copied, not split
        chosen = next(r for r in ways if r.total <= room * 1e9 and r.way != "single")
    count, flops, epochs = work(recipe, s, chosen.checkpointing, gpus, images)
    hours = flops * epochs / (peak * 1e12 * mfu * gpus) / 3600
    lines.append(
        f"{count:,} images: {flops:.2e} FLOPs an epoch, {epochs:.4g} epochs: {hours:.2g} hours at {mfu:.0%} of {peak:g} TFLOP/s"
        f" on {gpus} GPU{'s' if gpus > 1 else ''}"
    )
    lines.append(launch_line(recipe, chosen, typed, gpus))
    return lines
