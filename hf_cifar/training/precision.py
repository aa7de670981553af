"""The precision and memory layout that are fastest for a model on this hardware."""

from __future__ import annotations

import ctypes
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from transformers import TrainingArguments

from hf_cifar.training.determinism import use_deterministic_kernels

MIN_GAIN = 1.05  # a speed below this does not pay for leaving float32 and contiguous images


class Precision(NamedTuple):
    """How a model computes: autocast to bfloat16 or float32, channels-last images or contiguous."""

    bf16: bool
    channels_last: bool

    def __str__(self) -> str:
        name = "bfloat16 autocast" if self.bf16 else "float32"
        return f"{name}, channels last" if self.channels_last else name


def prepare_device(device: torch.device, *, deterministic: bool) -> None:
    """Let the libraries below torch work as fast as they can, or the same way each time.

    On a GPU, cuDNN times its convolution kernels once for each shape and keeps the fastest.
    """
    if deterministic:
        use_deterministic_kernels()
    if device.type == "cpu":
        keep_freed_memory()
    else:
        torch.backends.cudnn.benchmark = not deterministic


def set_weight_layout(model: nn.Module, device: torch.device, channels_last: bool) -> None:
    """Lay the convolutions' weights out as their images are, in place.

    On a GPU, images and weights of two layouts are reordered at every convolution. On a CPU,
    oneDNN reorders weights to a layout of its own in any case.
    """
    if channels_last and device.type != "cpu":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@contextmanager
def exact_products() -> Iterator[None]:
    """Multiply float32 matrices on a GPU without TF32 while the block or the function runs.

    Training may round its factors to TF32's 10 bits; a solver that looks for a gradient of 1e-6,
    or a ranking by similarity, may not.
    """
    matmul = torch.backends.cuda.matmul
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = "none"  # what `torch.backends.fp32_precision` says


def precision_name(arguments: TrainingArguments) -> str:
    """Return fp16, bf16, tf32 or fp32: the precision of the matrix products in training."""
    if arguments.fp16 or arguments.bf16:
        return "fp16" if arguments.fp16 else "bf16"
    return "tf32" if arguments.tf32 and arguments.device.type == "cuda" else "fp32"


def keep_freed_memory() -> None:
    """Let the CPU's allocator keep what a step frees, instead of returning it to the kernel and
    faulting it in again at the next step.

    A forward pass of EfficientNet-Lite0 at 192 px took 1.7 million page faults in four batches
    without this and none with it: a third of its time. Only glibc has these switches (mallopt(3)).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    m_mmap_max, m_trim_threshold = -4, -1
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)


def has_bf16(device: torch.device) -> bool:
    """Return whether the hardware multiplies bfloat16 matrices itself: CUDA from Ampere on, CPUs
    with AMX or AVX512-BF16.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type != "cpu":
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text().split("flags", 2)[1].split("\n", 1)[0]
    except (OSError, IndexError):
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def fastest_precision(
    model: nn.Module,
    image_size: int,
    device: torch.device,
    *,
    bf16: bool | None = None,
    channels_last: bool | None = None,
) -> tuple[Precision, str]:
    """Return the fastest way to compute `model` on `device`, and the reason for the log.

    bf16, channels_last: fix that part of the choice; None leaves it open.

    On a GPU the answer is known. On a CPU it is measured, because small models lose in bfloat16,
    and channels last alone can be slower than neither: a step of ResNet-18 with 64 images of 96 px
    took one core 2.04 s in float32, 1.15 s in bfloat16, 1.04 s with channels last as well and
    2.83 s with channels last alone. The model's parameters, gradients and mode stay as they were.
    """
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    layouts = [False, True] if convolutions > 1 else [False]  # one patch embedding gains nothing
    if device.type != "cpu":
        precision = Precision(
            has_bf16(device) if bf16 is None else bf16,
            layouts[-1] if channels_last is None else channels_last,
        )
        return precision, f"{precision}: what this {device.type} device is built for"
    choices = [
        Precision(*choice)
        for choice in product(
            ([False, True] if has_bf16(device) else [False]) if bf16 is None else [bf16],
            layouts if channels_last is None else [channels_last],
        )
    ]
    if len(choices) == 1:
        return choices[0], str(choices[0])
    seconds = _seconds_per_pass(model, image_size, choices)
    plain, quickest = choices[0], min(choices, key=seconds.__getitem__)
    choice = quickest if seconds[plain] > MIN_GAIN * seconds[quickest] else plain
    speeds = ", ".join(f"{other} {seconds[plain] / seconds[other]:.2f}" for other in choices)
    return choice, f"{choice}: measured speeds on this CPU: {speeds}"


def _seconds_per_pass(
    model: nn.Module, image_size: int, choices: list[Precision]
) -> dict[Precision, float]:
    """Return the least of up to three times of a pass on one to eight images, for each choice.

    A pass goes backward too if anything trains.
    """
    mode = model.training
    model.eval()  # the pass must not change the statistics of batch norms
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def seconds(precision: Precision, count: int) -> float:
        images = torch.zeros(count, 3, image_size, image_size)
        if precision.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        start = time.perf_counter()
        with (
            torch.set_grad_enabled(bool(trained)),
            torch.autocast("cpu", torch.bfloat16, enabled=precision.bf16),
        ):
            logits = model(pixel_values=images).logits
        if trained:
            torch.autograd.grad(logits.float().sum(), trained, allow_unused=True)
        return time.perf_counter() - start

    first = seconds(choices[-1], 1)
    count, rounds = (8, 3) if first < 0.5 else (1, 3 if first < 2 else 1)
    times = [[seconds(precision, count) for precision in choices] for _ in range(rounds)]
    model.train(mode)
    return dict(zip(choices, map(min, zip(*times, strict=True)), strict=True))
