"""Measure latency, images/s and memory of a trained model on this hardware."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_cifar.features.frozen_backbone import FrozenBackbone
from hf_cifar.models.flops import forward_flops

MOST_PASSES = 20  # of which the median is taken
LARGEST_BATCH = 256
PATIENCE = 2  # batch sizes in a row without a gain, after which no larger one is tried
MIN_GAIN = 1.05  # of images/s; a larger batch that gains less is not worth its memory


@dataclass(frozen=True)
class InferenceCost:
    """The cost of a model that does not train.

    parameters: count. flops: of one image. milliseconds: latency of one image, the median.
    memory_bytes: of weights and the largest activations that live at a time, with one image.
    best_batch: the images at a time that give most images_per_second, within the limit of memory;
    best_batch_memory_bytes: its memory.
    """

    parameters: int
    flops: int
    milliseconds: float
    memory_bytes: int
    best_batch: int
    images_per_second: float
    best_batch_memory_bytes: int


@torch.inference_mode()
def measure_inference(
    frozen: FrozenBackbone, image_size: int, most_memory: float, seconds: float
) -> InferenceCost:
    """Return what a model costs, measured on random images in the precision that it uses here.

    The batch grows by powers of two while that gives more images a second and takes less than
    `most_memory` bytes.

    seconds: for the passes of one batch size, and most of a single pass.
    """
    model, device = frozen.model, frozen.device
    layout = torch.channels_last if frozen.channels_last else torch.contiguous_format
    parameters = sum(parameter.numel() for parameter in model.parameters())

    def forward_pass(batch: int) -> Callable[[], None]:
        images = torch.randn(batch, 3, image_size, image_size, device=device)
        images = images.contiguous(memory_format=layout)

        def run() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=frozen.bf16):
                model(pixel_values=images)

        return run

    single = forward_pass(1)
    latency = _seconds(single, device, seconds)
    memory = peak_memory(single, model, device)
    best, batch, without_gain = (1, 1 / latency, memory), 2, 0
    while batch <= LARGEST_BATCH and without_gain < PATIENCE and best[0] / best[1] < seconds:
        run = forward_pass(batch)
        try:
            batch_memory = peak_memory(run, model, device)
            if batch_memory > most_memory:
                break
            speed = batch / _seconds(run, device, seconds)
        except torch.OutOfMemoryError:
            break
        without_gain += 1
        if speed > MIN_GAIN * best[1]:
            best, without_gain = (batch, speed, batch_memory), 0
        batch *= 2
    return InferenceCost(
        parameters=parameters,
        flops=forward_flops(model, image_size, device),
        milliseconds=1000 * latency,
        memory_bytes=memory,
        best_batch=best[0],
        images_per_second=best[1],
        best_batch_memory_bytes=best[2],
    )


def _seconds(run: Callable[[], None], device: torch.device, most: float) -> float:
    """Return the median time of passes of `most` seconds together, after one that warms up."""
    _timed(run, device)
    times: list[float] = []
    while len(times) < MOST_PASSES and sum(times) < most:
        times.append(_timed(run, device))
    return statistics.median(times)


def _timed(run: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def peak_memory(run: Callable[[], None], model: Any, device: torch.device) -> int:
    """Return the bytes of the model's weights and of the most tensors that live at a time in `run`.

    On a CPU the tensors are counted that operators return, without what kernels use inside.
    """
    tensors = [*model.parameters(), *model.buffers()]
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return weights + torch.cuda.max_memory_allocated(device) - before
    known = {tensor.untyped_storage()._cdata for tensor in tensors}
    with _LiveTensors(known) as live:
        run()
    return weights + live.most


class _LiveTensors(TorchDispatchMode):
    """Adds up the storages of tensors that operators return, for as long as they live.

    known: addresses of storages that do not count. most: the most bytes at a time.
    """

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known, self.sizes = known, dict[int, int]()
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for output in tree_leaves(outputs):
            if isinstance(output, torch.Tensor):
                self._count(output.untyped_storage())
        return outputs

    def _count(self, storage: Any) -> None:
        address = storage._cdata
        if address in self.known or address in self.sizes:
            return
        self.sizes[address] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._free, address)

    def _free(self, address: int) -> None:
        self.now -= self.sizes.pop(address)
