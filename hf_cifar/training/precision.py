"""The precision and memory layout that are fastest for a model on this hardware."""

from __future__ import annotations

import ctypes
import platform
import time
from pathlib import Path

import torch
from torch import nn


def keep_freed_memory() -> None:
    """On a CPU, let the allocator keep what a step frees instead of giving it back to the kernel
    and faulting it in again at
    the next step: a forward pass of EfficientNet-Lite0 at 192 px took 1.7 million page faults in
    four batches without this and none with it, a third of its time. Only glibc has these switches
    (mallopt(3)).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    m_mmap_max, m_trim_threshold = -4, -1
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices itself (CUDA from Ampere on; CPUs with AMX
    or AVX512-BF16).
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


def fastest(
    model: nn.Module,
    image_size: int,
    device: torch.device,
    bf16: bool | None,
    channels_last: bool | None,
) -> tuple[bool, bool, str]:
    """(autocast to bfloat16, channels-last images, why): what is quickest for this model here. What
    is not None stays.

    On a GPU the answer is known. On a CPU it is measured, forward and (where anything trains)
    backward, on one to eight
    images, best of three in turn: small models lose in bfloat16; a step of ResNet-18 with 64 images
    of 96 px took one core 2.04 s in float32, 1.15 in bfloat16, 1.04 with channels last as well and
    2.83 with that alone. The plain way is left only for a gain of 5 %. The model's parameters,
    gradients and mode stay as they were.
    """
    convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    layouts = [False, True] if convolutions > 1 else [False]  # a lone patch embedding gains nothing
    if device.type != "cpu":
        chosen = (
            has_bf16(device) if bf16 is None else bf16,
            layouts[-1] if channels_last is None else channels_last,
        )
        return *chosen, f"{_way(*chosen)}: what this {device.type} device is built for"
    precisions = [False, True] if has_bf16(device) else [False]
    ways = [
        (p, c)
        for p in (precisions if bf16 is None else [bf16])
        for c in (layouts if channels_last is None else [channels_last])
    ]
    if len(ways) == 1:
        return *ways[0], _way(*ways[0])
    mode = model.training
    model.eval()  # batch norms and dropout must not notice
    trained = [p for p in model.parameters() if p.requires_grad]

    def seconds(way: tuple[bool, bool], count: int) -> float:
        images = torch.zeros(count, 3, image_size, image_size)
        images = images.contiguous(memory_format=torch.channels_last) if way[1] else images
        began = time.perf_counter()
        with (
            torch.set_grad_enabled(bool(trained)),
            torch.autocast("cpu", torch.bfloat16, enabled=way[0]),
        ):
            logits = model(pixel_values=images).logits
        if trained:
            torch.autograd.grad(logits.float().sum(), trained, allow_unused=True)
        return time.perf_counter() - began

    first = seconds(ways[-1], 1)
    count, rounds = (8, 3) if first < 0.5 else (1, 3 if first < 2 else 1)
    times = [[seconds(way, count) for way in ways] for _ in range(rounds)]
    model.train(mode)
    best = dict(zip(ways, map(min, zip(*times, strict=True)), strict=True))
    quickest = min(ways, key=best.__getitem__)
    chosen = quickest if best[quickest] * 1.05 < best[ways[0]] else ways[0]
    others = ", ".join(f"{_way(*way)} {best[ways[0]] / best[way]:.2f}" for way in ways)
    return *chosen, f"{_way(*chosen)}: measured speeds on this CPU: {others}"


def _way(bf16: bool, channels_last: bool) -> str:
    return ("bfloat16 autocast" if bf16 else "float32") + (
        ", channels last" if channels_last else ""
    )
